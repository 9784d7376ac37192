"""Text normalisation against words and numbers as they are written and read in Vietnamese."""

import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given

from viavsp_jax.vietnamese import DIGITS, Syllable, cardinal, difference, spoken_form

# Older spelling → newer; what has a coda, qu or another vowel is written one way only.
PLACEMENT = {
    "hoà": "hòa", "hoá": "hóa", "hoả": "hỏa", "hoạ": "họa", "loã": "lõa", "toà": "tòa", "khoá": "khóa", "goá": "góa",
    "xoá": "xóa", "đoá": "đóa", "oà": "òa", "loà": "lòa", "khoẻ": "khỏe", "xoè": "xòe", "loé": "lóe", "hoè": "hòe",
    "toé": "tóe", "doạ": "dọa", "thuỷ": "thủy", "thuý": "thúy", "tuỳ": "tùy", "huỷ": "hủy", "luỹ": "lũy", "uỷ": "ủy",
    "suý": "súy", "nguỵ": "ngụy", "truỵ": "trụy", "uý": "úy",
}  # fmt: skip
ONE_WAY = (
    "quý quỳ quỷ quỹ quỵ quả quà quá quạ quẽ què quét già giá giả giã hoặc hoạt hoàn toán xoáy ngoạm khoét loẹt huýt "
    "khuỷu thuyền huých tuyệt suýt uyển mía múa mùa lừa thuở hòa khỏe thúy"
)

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
    "1.500": "một nghìn năm trăm", "1.000.000 đồng": "một triệu đồng", "1,000,000": "một triệu",
    "3,14": "ba phẩy mười bốn", "3.14": "ba phẩy mười bốn", "0,5": "không phẩy năm", "3,05": "ba phẩy không năm",
    "2,125": "hai phẩy một hai năm", "1.500,5": "một nghìn năm trăm phẩy năm", "10,000.5": "mười nghìn phẩy năm",
    "25%": "hai mươi lăm phần trăm", "25 %.": "hai mươi lăm phần trăm", "0912": "không chín một hai",
    "năm 2026.": "năm hai nghìn không trăm hai mươi sáu", "20.11.1900": "hai mươi mười một một nghìn chín trăm",
    "20/11": "hai mươi mười một", "2020-2021": "hai nghìn không trăm hai mươi hai nghìn không trăm hai mươi mốt",
    "covid19": "covid mười chín", "1" * 16: " ".join(["một"] * 16),
}  # fmt: skip


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


@pytest.mark.parametrize("old, new", PLACEMENT.items())
def test_one_placement_of_tones(old, new):
    assert spoken_form(old) == spoken_form(new) == spoken_form(old.upper()) == new
    assert spoken_form(unicodedata.normalize("NFD", f"{old}, {old}")) == f"{new} {new}"


@pytest.mark.parametrize("word", ONE_WAY.split())
def test_what_is_written_one_way_stays(word):
    assert spoken_form(word) == word


@pytest.mark.parametrize("number, words", NUMBERS.items())
def test_numbers_are_read(number, words):
    assert cardinal(number) == spoken_form(str(number)) == words


@given(st.integers(0, 10**15 - 1))
def test_numbers_can_be_read_back(number):
    assert number_of(cardinal(number)) == number


@pytest.mark.parametrize("written, words", WRITTEN.items())
def test_ways_of_writing_numbers(written, words):
    assert spoken_form(written) == words


def test_case_and_punctuation_do_not_count():
    assert spoken_form("“Xin chào!” – Đắk-Lắk… (A/B) 1 + 1 = 2") == "xin chào đắk lắk a b một một hai"
    assert spoken_form("bán lẻ một ngàn tư") == "bán lẻ một ngàn tư"  # other words, not other spellings


syllables = st.sampled_from([*PLACEMENT, *ONE_WAY.split(), "25", "1.500,5", "%", "-", "Q", "u", "\u0301", "\u0323"])


@given(st.one_of(st.text(), st.lists(syllables).map("".join), st.lists(syllables).map(" ".join)))
def test_a_second_time_changes_nothing(text):
    once = spoken_form(text)
    assert spoken_form(once) == once and not set(once) & set("0123456789,.!?%")


@pytest.mark.parametrize("word, parts", {
    "nghiêng": ("ngh", "iêng", "ngang"), "quả": ("qu", "a", "hỏi"), "giá": ("gi", "a", "sắc"),
    "gì": ("g", "i", "huyền"), "ăn": ("", "ăn", "ngang"), "đợi": ("đ", "ơi", "nặng"), "ngã": ("ng", "a", "ngã"),
    "thủy": ("th", "uy", "hỏi"), "facebook": ("", "facebook", "ngang"),
}.items())  # fmt: skip
def test_parts_of_a_syllable(word, parts):
    assert Syllable.of_word(word) == Syllable(*parts)


@pytest.mark.parametrize("a, b, parts", [
    ("ma", "mạ", "tone"), ("ba", "ma", "onset"), ("ban", "bàn", "tone"), ("bàn", "bằn", "rhyme"),
    ("trong", "chong", "onset"), ("anh", "nhanh", "onset"), ("đẹp", "đen", "rhyme+tone"), ("cá", "gà", "onset+tone"),
    ("cá", "chó", "onset+rhyme"), ("ngọt", "tươi", "onset+rhyme+tone"), ("hòa", "hoà", ""),
])  # fmt: skip
def test_what_two_syllables_differ_in(a, b, parts):
    assert difference(a, b) == difference(b, a) == parts
