"""Numbers as they are written and read in Vietnamese."""

import time
import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given

from viavsp_jax.evaluation.numerals import DIGITS, cardinal, read_numbers
from viavsp_jax.evaluation.vietnamese import spoken_form

NUMBERS = {
    0: "không", 1: "một", 4: "bốn", 5: "năm", 10: "mười", 11: "mười một", 14: "mười bốn", 15: "mười lăm",
    20: "hai mươi", 21: "hai mươi mốt", 24: "hai mươi bốn", 25: "hai mươi lăm", 50: "năm mươi", 55: "năm mươi lăm",
    91: "chín mươi mốt", 100: "một trăm", 101: "một trăm linh một", 105: "một trăm linh năm", 110: "một trăm mười",
    111: "một trăm mười một", 115: "một trăm mười lăm", 121: "một trăm hai mươi mốt", 555: "năm trăm năm mươi lăm",
    1000: "một nghìn", 1005: "một nghìn không trăm linh năm", 1010: "một nghìn không trăm mười",
    1105: "một nghìn một trăm linh năm", 1975: "một nghìn chín trăm bảy mươi lăm",
    2026: "hai nghìn không trăm hai mươi sáu", 10_005: "mười nghìn không trăm linh năm",
    21_021: "hai mươi mốt nghìn không trăm hai mươi mốt", 100_000: "một trăm nghìn", 1_000_000: "một triệu",
    1_000_005: "một triệu không trăm linh năm", 1_005_000: "một triệu không trăm linh năm nghìn",
    15_000_000: "mười lăm triệu", 10**9: "một tỷ", 10**9 + 10**6: "một tỷ không trăm linh một triệu",
    10**9 + 1: "một tỷ không trăm linh một", 5 * 10**12: "năm nghìn tỷ",
}  # fmt: skip

WRITTEN = {
    "1.500": "một nghìn năm trăm",
    "1.000.000 đồng": "một triệu đồng",
    "1,000,000": "một triệu",
    "3,14": "ba phẩy mười bốn",
    "3.14": "ba phẩy mười bốn",
    "0,5": "không phẩy năm",
    "3,05": "ba phẩy không năm",
    "2,125": "hai phẩy một hai năm",
    "1.500,5": "một nghìn năm trăm phẩy năm",
    "10,000.5": "mười nghìn phẩy năm",
    "25%": "hai mươi lăm phần trăm",
    "25 %.": "hai mươi lăm phần trăm",
    "0912": "không chín một hai",
    "năm 2026.": "năm hai nghìn không trăm hai mươi sáu",
    "2020-2021": "hai nghìn không trăm hai mươi hai nghìn không trăm hai mươi mốt",
    "covid19": "covid mười chín",
    "1" * 16: " ".join(["một"] * 16),
}


def number_of(words):
    """What a number in words says: the reverse of the rules, each of them written down on its own."""
    units = dict(zip(DIGITS, range(10), strict=True)) | {"mốt": 1, "lăm": 5}
    groups, group = {}, 0
    for word in [*words.split(), ""]:
        if word in units:
            group += units[word]
        elif word == "mười":
            group += 10
        elif word == "mươi":
            group += 9 * (group % 10)
        elif word == "trăm":
            group *= 100
        elif word != "linh":
            power = {"tỷ": 9, "triệu": 6, "nghìn": 3, "": 0}[word]
            groups = {p + (power if p < power else 0): n for p, n in groups.items()} if power == 9 else groups
            groups[power] = groups.get(power, 0) + group
            group = 0
    return sum(n * 10**power for power, n in groups.items())


@pytest.mark.parametrize("number, words", NUMBERS.items())
def test_numbers_are_read(number, words):
    assert cardinal(number) == spoken_form(str(number)) == words


@given(st.integers(0, 10**15 - 1))
def test_numbers_can_be_read_back(number):
    assert number_of(cardinal(number)) == number


@pytest.mark.parametrize("written, words", WRITTEN.items())
def test_ways_of_writing_numbers(written, words):
    assert spoken_form(written) == words


YEAR = "năm hai nghìn không trăm hai mươi bốn"
LONGER = {
    # Groups, of spaces of any width.
    "1 000 000": "một triệu",
    "1\u00a0500\u00a0000 đồng": "một triệu năm trăm nghìn đồng",
    "12 345": "mười hai nghìn ba trăm bốn mươi lăm",
    "1\u202f000": "một nghìn",
    "1\u2009000,5": "một nghìn phẩy năm",
    "250 000": "hai trăm năm mươi nghìn",
    "0912 345": "không chín một hai ba trăm bốn mươi lăm",
    "1 0000": "một không không không không",
    # Signs.
    "-5": "âm năm",
    "\u22125": "âm năm",
    "nhiệt độ -5°C": "nhiệt độ âm năm độ xê",
    "(-0,5)": "âm không phẩy năm",
    "−5 %": "âm năm phần trăm",
    "ba - bốn": "ba bốn",
    "- 5 quả": "năm quả",
    "10 -5": "mười năm",
    "covid-19": "covid mười chín",
    # Units.
    "5kg": "năm ki lô gam",
    "60 km/h": "sáu mươi ki lô mét trên giờ",
    "25°C": "hai mươi lăm độ xê",
    "25 ºc": "hai mươi lăm độ xê",
    "10m2": "mười mét vuông",
    "10 m²": "mười mét vuông",
    "3 m³": "ba mét khối",
    "$5": "năm đô la",
    "5 $": "năm đô la",
    "$1.5 triệu": "một phẩy năm triệu đô la",
    "5 tỷ VNĐ": "năm tỷ đồng",
    "500đ": "năm trăm đồng",
    "1.500 đồng": "một nghìn năm trăm đồng",
    "500 đôi": "năm trăm đôi",
    "1m70": "một mét bảy mươi",
    "5G": "năm g",
    "500g": "năm trăm gam",
    "5 mét": "năm mét",
    "10 hai": "mười hai",
    "3 lần": "ba lần",
    "１２％": "mười hai phần trăm",
    # Ranges.
    "5-10": "năm đến mười",
    "5–10 người": "năm đến mười người",
    "2-3 ngày": "hai ba ngày",
    "4-5%": "bốn đến năm phần trăm",
    "200-300 triệu đ": "hai trăm đến ba trăm triệu đồng",
    "thắng 1-3": "thắng một ba",
    "3-1": "ba một",
    "1-3-5": "một ba năm",
    "0912-345": "không chín một hai ba trăm bốn mươi lăm",
    "0-2": "không hai",
    # Dates.
    "20/11/2024": f"hai mươi tháng mười một {YEAR}",
    "ngày 20-11-2024.": f"ngày hai mươi tháng mười một {YEAR}",
    "20.11.2024": f"hai mươi tháng mười một {YEAR}",
    "2024-11-20": f"hai mươi tháng mười một {YEAR}",
    "02/04/2024": f"hai tháng tư {YEAR}",
    "tháng 11/2024": f"tháng mười một {YEAR}",
    "11/2024": f"tháng mười một {YEAR}",
    "20/11": "hai mươi tháng mười một",
    "30/4 và 1/5": "ba mươi tháng tư và một năm",
    "ngày 1/5": "ngày một tháng năm",
    "ngày 5-10": "ngày năm tháng mười",
    "tháng 4": "tháng tư",
    "thứ 4": "thứ tư",
    "tháng 4 5": "tháng tư năm",
    "32/13/2024": "ba mươi hai mười ba hai nghìn không trăm hai mươi bốn",
    "11/2024/NĐ-CP": "mười một hai nghìn không trăm hai mươi bốn nđ cp",
    "20/11/2024-25/11/2024": f"hai mươi tháng mười một {YEAR} hai mươi lăm tháng mười một {YEAR}",
    # Times of day.
    "8h30": "tám giờ ba mươi phút",
    "08:05": "tám giờ năm phút",
    "8h": "tám giờ",
    "8h00": "tám giờ",
    "8h30 phút": "tám giờ ba mươi phút",
    "23:59:01": "hai mươi ba giờ năm mươi chín phút một giây",
    "8h30-10h": "tám giờ ba mươi phút mười giờ",
    # What may mean several things.
    "1/2": "một hai",
    "24/7": "hai mươi bốn bảy",
    "3.1.4": "ba một bốn",
    "tỷ lệ 16:10": "tỷ lệ mười sáu mười",
    "192.168.1.1": "một trăm chín mươi hai một trăm sáu mươi tám một một",
    "B52": "b năm mươi hai",
    "50/50": "năm mươi năm mươi",
}


@pytest.mark.parametrize("written, words", LONGER.items())
def test_numbers_with_what_belongs_to_them(written, words):
    assert spoken_form(written) == spoken_form(f"{written} ") == words
    assert spoken_form(unicodedata.normalize("NFD", f"“{written}”, nhé")) == f"{words} nhé"


@given(st.text(st.sampled_from("0159 -−/:.,hgmkđ%$°C2²tỷngày")))
def test_no_digit_is_left(text):
    once = spoken_form(text)
    assert not set(once) & set("0123456789%$") and spoken_form(once) == once


@pytest.mark.parametrize("part", ["1", "1.", "1 000 ", "1-", "1/", "12:30:", "-", "1 tỷ ", "1/1/2000-", "ngày "])
def test_long_rows_take_no_time(part):
    start = time.perf_counter()
    read_numbers(part * (100_000 // len(part)))
    assert time.perf_counter() - start < 5
