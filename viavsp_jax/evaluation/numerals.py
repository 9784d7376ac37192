"""Numbers in Vietnamese text, in words as they are read: with signs, units, dates and times of day.

Where usage knows more than one way:

  105               một trăm linh năm              not "lẻ"
  24                hai mươi bốn                   not "tư"; but tháng 4, thứ 4: tháng tư, thứ tư
  1005              một nghìn không trăm linh năm  hundreds of a later group are named, even if there are none
  1000005           một triệu không trăm linh năm  a group of zeros is left out
  1.500             một nghìn năm trăm             a point before three digits groups them, a comma is the decimal sign;
  3.14              ba phẩy mười bốn               where that cannot be meant, the English way: 3.14, 1,000,000
  1 500 000         một triệu năm trăm nghìn       so does a space, of any width
  3,05              ba phẩy không năm              digit by digit, unless these are one or two without a zero in front
  0912345678        không chín một hai …           digit by digit, and so are numbers of more than 15 digits
  25%, $5, 3 km/h   hai mươi lăm phần trăm         and so with UNITS, which stand behind the number when it is read
  1m70              một mét bảy mươi
  -5                âm năm                         a dash right in front, and neither a word nor a number before it
  5-10, 2-3 kg      năm đến mười                   rising, by more than one or with a unit; not after thắng, thua, tỷ số
  20/11/2024        hai mươi tháng mười một năm …  or 20-11-2024, 20.11.2024, 2024-11-20; also 11/2024
  30/4, ngày 1/5    ba mươi tháng tư               where it is no fraction below one, or a word says so (also ngày 1-5)
  8h05, 08:05       tám giờ năm phút

What may mean several things is read number by number, and what joins them is not: 1/2, 24/7, 2-1, 2-3, 2020-2021,
3.1.4, covid-19, and 5G, which is no weight.
"""

import re

DIGITS = ("không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín")
# As they are written behind a number, in lower case; of money also in front.
UNITS = {
    "%": "phần trăm", "‰": "phần nghìn", "°": "độ", "°c": "độ xê", "℃": "độ xê", "°f": "độ ép",
    "mm": "mi li mét", "cm": "xăng ti mét", "dm": "đề xi mét", "m": "mét", "km": "ki lô mét",
    "mg": "mi li gam", "g": "gam", "kg": "ki lô gam", "ml": "mi li lít", "l": "lít", "ha": "héc ta", "h": "giờ",
    "km/h": "ki lô mét trên giờ", "m/s": "mét trên giây", "kw": "ki lô oát", "kwh": "ki lô oát giờ",
    "$": "đô la", "usd": "đô la", "€": "ơ rô", "£": "bảng", "₫": "đồng", "đ": "đồng", "vnđ": "đồng", "vnd": "đồng",
}  # fmt: skip
for _length in ("mm", "cm", "dm", "m", "km"):
    for _signs, _word in (("2²", "vuông"), ("3³", "khối")):
        UNITS |= {_length + sign: f"{UNITS[_length]} {_word}" for sign in _signs}

# More digits are not read as one number.
_LONGEST = 15
# (whole, fraction), the Vietnamese way first.
_FORMS = (
    re.compile(r"([1-9][0-9]{0,2}(?:\.[0-9]{3})+|[0-9]+)(?:,([0-9]+))?"),
    re.compile(r"([1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.([0-9]+))?"),
)
_GROUPS = re.compile(r"(?<![0-9][\s.,/:])(?<![0-9+])[1-9][0-9]{0,2}(?:\s[0-9]{3})+(?!\s?[0-9]|[/:][0-9])")

_NUMBER, _DASH = r"[0-9]+(?:[.,][0-9]+)*", "[-\u2010\u2011\u2013\u2212]"
# After these, numbers stand against each other.
_PAIRS = ("tỷ lệ", "tỉ lệ", "tỷ số", "tỉ số", "thắng", "thua", "hòa", "hoà")
_ALONE = "".join(f"(?<!{words} )" for words in _PAIRS)
_SIGNS = "|".join(sorted((re.escape(x) for x in UNITS if not x[-1].isalnum()), key=len, reverse=True))
_LETTERS = "|".join(sorted((re.escape(x) for x in UNITS if x[-1].isalnum()), key=len, reverse=True))
_QUANTITY = re.compile(
    rf"(?:(?<![\w%°)\]])(?<![0-9] )(?P<minus>{_DASH})(?!0[0-9]))?"
    rf"(?P<money>[$€£₫] ?)?(?P<number>{_NUMBER})(?:{_DASH}(?P<to>{_NUMBER})(?!{_DASH}?[0-9/]))?"
    r"(?P<scale>(?: ?(?:nghìn|ngàn|triệu|tỷ|tỉ)(?!\w))*)"
    rf"(?P<space> ?)(?P<unit>(?:{_LETTERS})(?!\w)|m(?=[0-9]{{1,2}}(?![\w.,]))|{_SIGNS})?"
)
_IN_A_ROW = re.compile(f"[0-9]{_DASH}$")
_DEGREE = re.compile(r"[°º] ?(?=[cf](?!\w))|(?<=[0-9])º")  # of numerals, the ordinal sign serves as well

_DAY, _MONTH, _YEAR = "(?P<day>0?[1-9]|[12][0-9]|3[01])", "(?P<month>0?[1-9]|1[0-2])", "(?P<year>[12][0-9]{3})"
_FROM, _TO = r"(?<![\w/.,:])", r"(?!\w|[/.,:][0-9]|/\w)"
_ON = "(?P<on>(?:ngày|mùng|mồng|hôm|sáng|trưa|chiều|tối|đêm) )"
_DATES = [
    re.compile(_FROM + pattern + _TO)
    for pattern in (
        rf"{_DAY}(?P<mark>[-/.]){_MONTH}(?P=mark){_YEAR}",
        rf"{_YEAR}(?P<mark>[-/.]){_MONTH}(?P=mark){_DAY}",
        rf"(?P<in>tháng ){_MONTH}[-/.]{_YEAR}",
        rf"{_MONTH}/{_YEAR}",
        rf"{_ON}{_DAY}/{_MONTH}",
        rf"(?P<on>(?:ngày|mùng|mồng) ){_DAY}-{_MONTH}(?!-)",
        rf"{_ALONE}(?!24/7){_DAY}/{_MONTH}",
    )
]
_TIME = re.compile(
    rf"{_FROM}{_ALONE}(?P<hours>[01]?[0-9]|2[0-4])[hg:](?P<minutes>[0-5][0-9])(?::(?P<seconds>[0-5][0-9]))?"
    rf"(?: ?(?:phút|ph|p|'))?{_TO}"
)
_ORDINALS = {"thứ 1": "thứ nhất", "thứ 4": "thứ tư", "tháng 4": "tháng tư", "tháng 04": "tháng tư"}
_ORDINAL = re.compile(rf"\b(?:{'|'.join(_ORDINALS)}){_TO}(?!{_DASH}[0-9])")


def read_numbers(text: str) -> str:
    """Text in lower case and Unicode NFC whose numbers, and what belongs to them, are words."""
    text = _DEGREE.sub("°", _GROUPS.sub(lambda match: re.sub(r"\s", "", match[0]), text))
    for pattern in _DATES:
        text = pattern.sub(_date, text)
    text = _TIME.sub(_time, text)
    text = _ORDINAL.sub(lambda match: _ORDINALS[match[0]], text)
    return _QUANTITY.sub(_quantity, text)


def _date(match: re.Match) -> str:
    parts = match.groupdict()
    day, month, year = (int(parts.get(name) or 0) for name in ("day", "month", "year"))
    if not year and not parts.get("on") and day <= month:  # a fraction, maybe
        return match[0]
    words = f"tháng {'tư' if month == 4 else cardinal(month)}"
    before, after = cardinal(day) if day else "", f"năm {cardinal(year)}" if year else ""
    return f"{parts.get('on') or ''}{before} {words} {after}".strip()


def _time(match: re.Match) -> str:
    words = f"{cardinal(int(match['hours']))} giờ"
    for name, unit in (("minutes", "phút"), ("seconds", "giây")):
        if number := int(match[name] or 0):
            words += f" {cardinal(number)} {unit}"
    return words


def _quantity(match: re.Match) -> str:
    number, to, scale, unit = (match[name] or "" for name in ("number", "to", "scale", "unit"))
    if unit == "g" and number in "23456" and not match["space"]:  # of mobile networks
        return f" {read_number(number)} g"
    words = ["âm" if match["minus"] else "", read_number(number)]
    if to:
        words += ["đến" if _is_range(match) else "", read_number(to)]
    words += [scale, UNITS[match["money"].strip()] if match["money"] else "", UNITS[unit] if unit else ""]
    return f" {' '.join(words)} "


def _is_range(match: re.Match) -> bool:
    """Not a score, nor a part of a longer row as of telephone numbers."""
    low, high = _value(match["number"]), _value(match["to"])
    least = 0 if match["unit"] or match["money"] else 1
    before = match.string[max(0, match.start() - 9) : match.start()]
    return 0 < low < high - least and not before.rstrip().endswith(_PAIRS) and not _IN_A_ROW.search(before)


def _parsed(written: str) -> re.Match | None:
    return next((match for form in _FORMS if (match := form.fullmatch(written))), None)


def _value(written: str) -> float:
    """NaN, which is neither more nor less than any other, if it is not one number, or is read digit by digit."""
    found = _parsed(written)
    if not found or (len(found[1]) > 1 and found[1].startswith("0")):
        return float("nan")
    return float(f"{re.sub('[.,]', '', found[1])}.{found[2] or 0}")


def read_number(written: str) -> str:
    """A number in words: digits, with points and commas among them."""
    found = _parsed(written)
    if not found:  # a version
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
