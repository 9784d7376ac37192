import argparse

import pytest

from viavsp_jax.evaluation.vietnamese import place_tones
from viavsp_jax.prepare import transcripts


def cleaner(*options, language="vi"):
    parser = argparse.ArgumentParser()
    transcripts.add_arguments(parser)
    return transcripts.Cleaner(language, parser.parse_args(options))


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ((), "Hoà, 25 Ðà\u200b  Nẵng.", "Hoà, 25 Đà Nẵng."),
        (("--lower_case",), "HOÀ Ở Đây", "hoà ở đây"),
        (("--numbers_as_read",), "có 25 người", "có hai mươi lăm người"),
        (("--no_punctuation",), "Chào, bạn! (vâng)", "Chào bạn vâng"),
        (("--tones", "newer"), "Hoà KHOẺ thuý quý hoàn", "Hòa KHỎE thúy quý hoàn"),
        (("--tones", "older"), "Hòa KHỎE thúy quý hoàn", "Hoà KHOẺ thuý quý hoàn"),
        (
            ("--lower_case", "--numbers_as_read", "--no_punctuation", "--tones", "newer"),
            "HOÀ: 3 KG!",
            "hòa ba ki lô gam",
        ),
    ],
)
def test_each_option_does_what_it_says(options, text, expected):
    assert cleaner(*options)(text) == expected


def test_what_was_changed_is_counted():
    clean = cleaner("--lower_case", "--tones", "newer")
    for text in ("hòa", "HOÀ", "e\u0301m", "Ðà\u200b"):
        clean(text)
    assert clean.summary() == (
        "3 of 4 transcripts were changed: Unicode form in 1, spaces and invisible characters in 1, Đ of other "
        "alphabets in 1, capitals in 2, places of tone marks in 1"
    )
    assert cleaner().summary() == ""
    clean = cleaner()
    for text in ("CÂU MỘT", "câu", "CÂU"):
        clean(text)
    assert clean.capitals == 2


def test_other_languages_keep_what_is_theirs():
    clean = cleaner("--tones", "newer", "--numbers_as_read", language="is")
    assert clean("Ðað 25 hoà\u200b ") == "Ðað 25 hoà"


@pytest.mark.parametrize("word", ["hoà", "HOẠ", "Thuỷ", "xoè", "quý", "hoàn", "khuỷu"])
def test_styles_are_each_other_s_way_back(word):
    newer = place_tones(word, "newer")
    assert place_tones(place_tones(newer, "older"), "newer") == newer
    assert place_tones(newer, "older") == word
