"""Vietnamese text: one form of what may be written in several ways, and what a syllable is made of.

`spoken_form` takes away the differences that cannot be heard. It leaves those that can: "linh" and "lẻ", "nghìn" and
"ngàn", "bốn" and "tư" are different words, and stay as they were written.

How numbers are read, where usage knows more than one way:

  105        một trăm linh năm              not "lẻ"
  24         hai mươi bốn                   not "tư"
  1005       một nghìn không trăm linh năm  hundreds of a later group are named, even if there are none
  1000005    một triệu không trăm linh năm  a group of zeros is left out
  1.500      một nghìn năm trăm             a point before three digits groups them, a comma is the decimal sign;
  3.14       ba phẩy mười bốn               where that cannot be meant, the English way: 3.14, 1,000,000
  3,05       ba phẩy không năm              digit by digit, unless these are one or two without a zero in front
  0912345678 không chín một hai …           digit by digit, and so are numbers of more than 15 digits
  25%        hai mươi lăm phần trăm
"""

import dataclasses
import functools
import re
import unicodedata

DIGITS = ("không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín")
# The combining mark of each tone, in the order of dictionaries.
TONES = {"": "ngang", "\u0300": "huyền", "\u0309": "hỏi", "\u0303": "ngã", "\u0301": "sắc", "\u0323": "nặng"}
# More digits are not read as one number.
_LONGEST = 15

_NUMBER = re.compile(r"([0-9]+(?:[.,][0-9]+)*)(\s?%)?")
# (whole, fraction), the Vietnamese way first.
_FORMS = (
    re.compile(r"([1-9][0-9]{0,2}(?:\.[0-9]{3})+|[0-9]+)(?:,([0-9]+))?"),
    re.compile(r"([1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.([0-9]+))?"),
)
# Ends of open syllables as older spelling has them, with the tone on the second vowel (hoà, khoẻ, thuý), and as newer.
_NEWER = {
    unicodedata.normalize("NFC", first + second + mark): unicodedata.normalize("NFC", first + mark + second)
    for first, second in ("oa", "oe", "uy")
    for mark in TONES
    if mark
}
# The u of qu is no vowel.
_OLDER_END = re.compile(rf"(?<!q)(?:{'|'.join(_NEWER)})(?![\w\u0300-\u036f])")
# The vowel of gì and giếng is in gi itself.
_ONSET = re.compile(r"ngh|ng|nh|gh|gi(?=[aăâeoôơuư])|kh|ph|th|tr|ch|qu|[bcdđghklmnprstvx]|")


def spoken_form(text: str) -> str:
    """The words of a text as they are spoken: NFC, lower case, without punctuation, numbers and per cent in words.

    The tone mark stands where newer spelling has it: hòa, khỏe, thúy. Punctuation and symbols part words, as spaces do.
    """
    text = _NUMBER.sub(lambda match: f" {read_number(match[1])} {'phần trăm' if match[2] else ''} ", text.lower())
    text = place_tones(text)
    return " ".join("".join(" " if unicodedata.category(x)[0] in "PS" else x for x in text).split())


def place_tones(text: str) -> str:
    """Text in lower case whose open syllables in oa, oe and uy have the tone on the first vowel; NFC."""
    return _OLDER_END.sub(lambda match: _NEWER[match[0]], unicodedata.normalize("NFC", text))


def read_number(written: str) -> str:
    """A number in words: digits, with points and commas among them."""
    found = next((match for form in _FORMS if (match := form.fullmatch(written))), None)
    if not found:  # a date or a version
        return " ".join(_read_digits(part) for part in re.split("[.,]", written))
    whole, fraction = _read_digits(re.sub("[.,]", "", found[1])), found[2]
    if fraction is None:
        return whole
    short = len(fraction) < 3 and not fraction.startswith("0")
    return f"{whole} phẩy {_read_digits(fraction) if short else _one_by_one(fraction)}"


def cardinal(number: int) -> str:
    """A number from 0 on in words."""
    billions, rest = divmod(number, 10**9)
    if billions:
        return f"{cardinal(billions)} tỷ {_groups(rest, True)}".rstrip()
    return _groups(rest, False) or DIGITS[0]


def _groups(number: int, in_front: bool) -> str:
    """Millions, thousands and ones, less those that are 0; `in_front` says that something stands before them."""
    words = []
    for group, unit in ((number // 10**6, "triệu"), (number // 1000 % 1000, "nghìn"), (number % 1000, "")):
        if group:
            words += [_below_thousand(group, in_front or bool(words)), unit]
    return " ".join(words).rstrip()


def _below_thousand(number: int, in_front: bool) -> str:
    hundreds, tens, ones = number // 100, number // 10 % 10, number % 10
    words = [DIGITS[hundreds], "trăm"] if hundreds or in_front else []
    if tens > 1:
        words += [DIGITS[tens], "mươi"]
    elif tens:
        words.append("mười")
    elif ones and words:
        words.append("linh")
    if ones:
        changed = {1: "mốt"} if tens > 1 else {}
        words.append((changed | ({5: "lăm"} if tens else {})).get(ones, DIGITS[ones]))
    return " ".join(words)


def _read_digits(digits: str) -> str:
    if len(digits) > _LONGEST or (len(digits) > 1 and digits[0] == "0"):
        return _one_by_one(digits)
    return cardinal(int(digits))


def _one_by_one(digits: str) -> str:
    return " ".join(DIGITS[int(digit)] for digit in digits)


@dataclasses.dataclass(frozen=True)
class Syllable:
    """The parts of a syllable, as they are spelt; what has no Vietnamese onset is all rhyme."""

    onset: str  # may be empty
    rhyme: str
    tone: str  # a value of TONES

    @classmethod
    @functools.lru_cache(maxsize=65_536)
    def of_word(cls, word: str) -> "Syllable":
        letters = unicodedata.normalize("NFD", word.lower())
        marks = [x for x in letters if x in TONES]
        rest = unicodedata.normalize("NFC", "".join(x for x in letters if x not in TONES))
        onset = _ONSET.match(rest)[0]
        return cls(onset, rest[len(onset) :], TONES[marks[0] if marks else ""])


def difference(word: str, other: str) -> str:
    """The parts that two syllables differ in, joined by +: tone, onset+rhyme, …; empty for the same syllable."""
    a, b = Syllable.of_word(word), Syllable.of_word(other)
    parts = [part.name for part in dataclasses.fields(Syllable)]
    return "+".join(part for part in parts if getattr(a, part) != getattr(b, part))
