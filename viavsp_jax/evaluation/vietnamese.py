"""Vietnamese text: one form of what may be written in several ways, and what a syllable is made of.

`normalize` takes away the differences that cannot be seen, `spoken_form` those that cannot be heard; numerals.py says
how numbers are read. What can be heard stays: "linh" and "lẻ", "nghìn" and "ngàn", "bốn" and "tư" are different words,
and stay as they were written.
"""

import dataclasses
import functools
import re
import unicodedata
from typing import Literal

from viavsp_jax.evaluation.numerals import read_numbers

# The combining mark of each tone, in the order of dictionaries.
TONES = {"": "ngang", "\u0300": "huyền", "\u0309": "hỏi", "\u0303": "ngã", "\u0301": "sắc", "\u0323": "nặng"}

# Letters of other alphabets that look like Đ: Eth, of Icelandic, and African D.
_LIKE_D = str.maketrans("ÐðƉɖ", "ĐđĐđ")
# Spaces that have no width. Other characters that are not seen, as soft hyphens and joiners, stand inside words.
_NO_WIDTH = str.maketrans("\u200b\ufeff", "  ")
# The circumflex and the breve are part of a letter, and come before its tone.
_MARKS = re.compile("[\u0300\u0301\u0302\u0303\u0306\u0309]{2,}")
# Digits and signs as wide as Chinese characters.
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
# Ends of open syllables as older spelling has them, with the tone on the second vowel (hoà, khoẻ, thuý), and as newer.
_NEWER = {
    unicodedata.normalize("NFC", first + second + mark): unicodedata.normalize("NFC", first + mark + second)
    for first, second in ("oa", "oe", "uy")
    for mark in TONES
    if mark
}
# By style, ends of the other one and how they are spelt in it. The u of qu is no vowel.
_ENDS = {
    style: (re.compile(rf"(?<!q)(?:{'|'.join(spelling)})(?![\w\u0300-\u036f])", re.IGNORECASE), spelling)
    for style, spelling in {"newer": _NEWER, "older": {newer: older for older, newer in _NEWER.items()}}.items()
}
# The vowel of gì and giếng is in gi itself.
_ONSET = re.compile(r"ngh|ng|nh|gh|gi(?=[aăâeoôơuư])|kh|ph|th|tr|ch|qu|[bcdđghklmnprstvx]|")


def visible(text: str) -> str:
    """Text of any language in Unicode NFC, with single spaces, without control and format characters."""
    text = " ".join(text.translate(_NO_WIDTH).split())
    text = "".join(x for x in text if unicodedata.category(x) not in ("Cc", "Cf"))
    return " ".join(unicodedata.normalize("NFC", text).split())  # last: what stood apart may now be one letter


def normalize(text: str) -> str:
    """One spelling of the same text: as `visible`, each letter with one code and its marks in one order."""
    text = unicodedata.normalize("NFD", visible(text).translate(_LIKE_D))
    text = _MARKS.sub(lambda match: "".join(sorted(match[0], key=TONES.__contains__)), text)
    return unicodedata.normalize("NFC", text)


def with_our_d(text: str) -> str:
    """Text with Đ for the letters of other alphabets that look like it."""
    return text.translate(_LIKE_D)


def spoken_form(text: str) -> str:
    """The words of a text as they are spoken: as `normalize`, lower case, without punctuation, numbers in words.

    The tone mark stands where newer spelling has it: hòa, khỏe, thúy.
    """
    return without_punctuation(place_tones(read_numbers(normalize(text.translate(_WIDE)).lower())))


def without_punctuation(text: str) -> str:
    """Text without punctuation and symbols, which part words as spaces do."""
    return " ".join("".join(" " if unicodedata.category(x)[0] in "PS" else x for x in text).split())


def place_tones(text: str, style: Literal["newer", "older"] = "newer") -> str:
    """Text in NFC, in whose open syllables in oa, oe and uy the tone is on the first vowel or, older, on the second."""
    ends, spelling = _ENDS[style]
    return ends.sub(lambda match: _in_case_of(match[0], spelling[match[0].lower()]), unicodedata.normalize("NFC", text))


def _in_case_of(before: str, letters: str) -> str:
    """Letters, capitals where those before are."""
    return "".join(y.upper() if x.isupper() else y for x, y in zip(before, letters, strict=True))


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
