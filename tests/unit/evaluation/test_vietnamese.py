"""Text normalisation against words as they are written in Vietnamese."""

import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given

from viavsp_jax.evaluation.vietnamese import Syllable, difference, normalize, spoken_form, visible

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


@pytest.mark.parametrize("old, new", PLACEMENT.items())
def test_one_placement_of_tones(old, new):
    assert spoken_form(old) == spoken_form(new) == spoken_form(old.upper()) == new
    assert spoken_form(unicodedata.normalize("NFD", f"{old}, {old}")) == f"{new} {new}"


@pytest.mark.parametrize("word", ONE_WAY.split())
def test_what_is_written_one_way_stays(word):
    assert spoken_form(word) == word


def test_case_and_punctuation_do_not_count():
    assert spoken_form("“Xin chào!” – Đắk-Lắk… (A/B) 1 + 1 = 2") == "xin chào đắk lắk a b một một hai"
    assert spoken_form("bán lẻ một ngàn tư") == "bán lẻ một ngàn tư"  # other words, not other spellings


syllables = st.sampled_from([*PLACEMENT, *ONE_WAY.split(), "25", "1.500,5", "%", "-", "Q", "u", "\u0301", "\u0323"])
marks = st.text(st.sampled_from("aăeÐđ \u0301\u0302\u0306\u0323\u031b\u200b\u200d\ufeff"))


@given(st.one_of(st.text(), st.lists(syllables).map("".join), st.lists(syllables).map(" ".join)))
def test_a_second_time_changes_nothing(text):
    once = spoken_form(text)
    assert spoken_form(once) == once and not set(once) & set("0123456789,.!?%")


@given(st.one_of(st.text(), marks))
def test_one_spelling_has_no_other(text):
    for form in (visible, normalize):
        once = form(text)
        assert form(once) == once == unicodedata.normalize("NFC", once) and "\u200b" not in once
        assert form(unicodedata.normalize("NFD", text)) == once


@pytest.mark.parametrize("d", "ĐđÐðƉɖ")
def test_letters_that_look_like_d_with_a_stroke(d):
    assert normalize(f"{d}ường") == ("Đường" if d.isupper() else "đường")
    assert spoken_form(f"{d}i {d}âu") == "đi đâu" and Syllable.of_word(normalize(f"{d}i")).onset == "đ"
    assert visible("Ðað") == "Ðað"  # in Icelandic they are letters of their own


@pytest.mark.parametrize(
    "between", ["\u200b", "\ufeff", " \u200b", "\u200b\u200b ", "\u00a0", "\u202f", "\u3000", "\u2028"]
)
def test_spaces_without_width_part_words(between):
    assert normalize(f"\ufeffxin{between}chào\u200b") == visible(f"xin{between}chào") == "xin chào"
    assert spoken_form(f"Xin{between}chào!") == "xin chào"


@pytest.mark.parametrize("within", ["\u00ad", "\u2060", "\u200c", "\u200d", "\u200e", "\u202c", "\x07"])
def test_what_joins_or_hyphenates_is_within_words(within):
    assert normalize(f"ki{within}lô{within} gam") == visible(f"ki{within}lô{within} gam") == "kilô gam"
    assert normalize(f"e{within}\u0302{within}\u0301") == "ế"


@pytest.mark.parametrize("marks", ["\u0302\u0301", "\u0301\u0302", "\u0302\u0341", "\u0341\u0302"])
def test_marks_in_any_order(marks):
    """The dot below and the horn are put in order by Unicode, a circumflex behind the tone is not; U+0341 is of old."""
    assert normalize(f"tie{marks}ng") == "tiếng"
    assert normalize("Vie\u0323\u0302t") == normalize("Vie\u0302\u0323t") == normalize("Vi\u1eb9\u0302t") == "Việt"
    assert normalize("u\u0301\u031b") == "ứ" and normalize("a\u0309\u0306") == "ẳ"


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
