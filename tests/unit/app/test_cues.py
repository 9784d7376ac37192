"""Subtitles by word: lines, pauses, highlighted and doubtful words, as files have them."""

import dataclasses
import json

import pytest
from spoken_words import transcript_of_words

from viavsp_jax.app import captions
from viavsp_jax.app.cues import PLAIN, Style, cues
from viavsp_jax.runtime.errors import InputError

SENTENCE = "sáng nay em gái vẫn nấu mười bát phở ngon ở nhà trường"


def evenly(text, start, step=0.25):
    """Words that each last four fifths of a step."""
    return [
        (word, start + step * number, start + step * number + 0.8 * step, 0.9)
        for number, word in enumerate(text.split())
    ]


TWO = transcript_of_words([0, 3.4, *evenly(SENTENCE, 0.0)], [3.4, 4.4, *evenly("hôm nay", 3.5)])
SURE = transcript_of_words([0, 1.2, ("một", 0.1, 0.4, 0.92), ("hai", 0.5, 0.8, 0.31), ("ba", 0.8, 1.0, None)])


def test_without_options_subtitles_are_segments_whether_words_are_known_or_not():
    assert captions.render(TWO, "srt") == (
        f"1\n00:00:00,000 --> 00:00:03,400\n{SENTENCE}\n\n2\n00:00:03,400 --> 00:00:04,400\nhôm nay\n"
    )
    assert captions.render(TWO, "vtt") == (
        f"WEBVTT\n\n00:00:00.000 --> 00:00:03.400\n{SENTENCE}\n\n00:00:03.400 --> 00:00:04.400\nhôm nay\n"
    )
    assert captions.render(TWO, "txt") == f"{SENTENCE}\nhôm nay\n"


def test_lines_and_their_count_fill_subtitles_across_segments():
    assert captions.render(TWO, "srt", Style(max_line_width=42, max_line_count=2)) == (
        "1\n00:00:00,000 --> 00:00:03,950\nsáng nay em gái vẫn nấu mười bát phở ngon\nở nhà trường hôm nay\n"
    )
    assert captions.render(TWO, "srt", Style(max_line_width=12, max_line_count=2)) == (
        "1\n00:00:00,000 --> 00:00:01,450\nsáng nay em\ngái vẫn nấu\n\n"
        "2\n00:00:01,500 --> 00:00:02,950\nmười bát phở\nngon ở nhà\n\n"
        "3\n00:00:03,000 --> 00:00:03,950\ntrường hôm\nnay\n"
    )


def test_a_width_alone_keeps_segments_and_a_count_alone_does_nothing():
    assert captions.render(TWO, "srt", Style(max_line_width=20)) == (
        "1\n00:00:00,000 --> 00:00:03,200\nsáng nay em gái vẫn\nnấu mười bát phở\nngon ở nhà trường\n\n"
        "2\n00:00:03,500 --> 00:00:03,950\nhôm nay\n"
    )
    assert captions.render(TWO, "srt", Style(max_line_count=1)) == captions.render(TWO, "srt")
    assert Style(max_line_count=1).unused == "max_line_count does nothing without max_line_width"
    assert Style(max_line_count=1, max_line_width=9).unused is None
    assert "max_words_per_line does nothing" in Style(9, 1, 3).unused


def test_words_of_a_subtitle_are_counted_within_its_segment():
    assert [cue.lines for cue in cues(TWO, Style(max_words_per_line=5))] == [
        (tuple(word for word in TWO.words[start:end]),) for start, end in ((0, 5), (5, 10), (10, 13), (13, 15))
    ]
    lines = cues(TWO, Style(max_words_per_line=5, max_line_width=12))[0].lines
    assert [[word.text for word in line] for line in lines] == [["sáng", "nay", "em"], ["gái", "vẫn"]]


def test_a_word_longer_than_a_line_has_its_own():
    long = transcript_of_words([0, 1, ("a", 0, 0.1), ("nghiêngnghiêng", 0.2, 0.4), ("b", 0.5, 0.6), ("c", 0.7, 0.8)])
    assert [cue.lines for cue in cues(long, Style(max_line_width=3, max_line_count=1))] == [
        (words,) for words in (long.words[:1], long.words[1:2], long.words[2:])
    ]


@pytest.mark.parametrize(("start", "expected"), [
    (3.0, "1\n00:00:00,000 --> 00:00:03,500\nmột\nhai\n"),
    (3.01, "1\n00:00:00,000 --> 00:00:00,500\nmột\n\n2\n00:00:03,010 --> 00:00:03,500\nhai\n"),
])  # fmt: skip
def test_subtitles_end_at_pauses_of_more_than_three_seconds(start, expected):
    paused = transcript_of_words([0, 1, ("một", 0.0, 0.5)], [2, 4, ("hai", start, 3.5)])
    assert captions.render(paused, "srt", Style(max_line_width=5, max_line_count=2)) == expected


def test_highlighted_words_are_underlined_in_turn_and_none_between_them():
    style = Style(highlight_words=True)
    assert captions.render(SURE, "srt", style) == (
        "1\n00:00:00,100 --> 00:00:00,400\n<u>một</u> hai ba\n\n2\n00:00:00,400 --> 00:00:00,500\nmột hai ba\n\n"
        "3\n00:00:00,500 --> 00:00:00,800\nmột <u>hai</u> ba\n\n4\n00:00:00,800 --> 00:00:01,000\nmột hai <u>ba</u>\n"
    )
    assert captions.render(SURE, "vtt", Style(4, 3, highlight_words=True, word_timestamps=True)).endswith(
        "\n\n00:00:00.800 --> 00:00:01.000\nmột\nhai\n<u>ba</u>\n"
    )


def test_a_word_that_is_said_in_no_time_has_no_subtitle_of_its_own():
    short = transcript_of_words([0, 1, ("a", 0.0, 0.5), ("b", 0.5, 0.5004), ("a", 0.5004, 1.0)])
    found = cues(short, Style(highlight_words=True))
    assert [(cue.start, cue.end, cue.spoken) for cue in found] == [
        (0.0, 0.5, short.words[0]), (0.5004, 1.0, short.words[2])
    ]  # fmt: skip
    assert captions.render(short, "srt", Style(highlight_words=True)).count("<u>a</u> b a") == 1


def test_times_of_words_inside_a_subtitle():
    style = Style(word_timestamps=True)
    assert captions.render(SURE, "vtt", style) == (
        "WEBVTT\n\n00:00:00.100 --> 00:00:01.000\nmột <00:00:00.500>hai <00:00:00.800>ba\n"
    )
    assert captions.render(SURE, "srt", style) == "1\n00:00:00,100 --> 00:00:01,000\nmột hai ba\n"
    wrapped = Style(max_line_width=7, word_timestamps=True)
    assert "một hai\n" in captions.render(SURE, "srt", wrapped)
    assert captions.render(SURE, "vtt", wrapped).endswith("một <00:00:00.500>hai\n<00:00:00.800>ba\n")


def test_doubtful_words_are_marked():
    style = Style(min_confidence=0.5)
    assert captions.render(SURE, "txt", style) == "một [hai?] ba\n"
    assert captions.render(SURE, "srt", style) == "1\n00:00:00,000 --> 00:00:01,200\nmột [hai?] ba\n"
    assert captions.render(SURE, "vtt", Style(highlight_words=True, min_confidence=0.5)).split("\n\n")[3] == (
        "00:00:00.500 --> 00:00:00.800\nmột <u>[hai?]</u> ba"
    )
    assert captions.render(SURE, "txt", Style(min_confidence=0.31)) == "một hai ba\n"
    # The marks take room.
    for width, expected in ((9, "một\n[hai?] ba\n"), (10, "một [hai?]\nba\n")):
        assert captions.render(SURE, "srt", Style(width, min_confidence=0.5)).endswith(f"\n{expected}")


def test_json_has_words_in_whispers_keys():
    words = [
        {"word": "một", "start": 0.1, "end": 0.4, "probability": 0.92},
        {"word": "hai", "start": 0.5, "end": 0.8, "probability": 0.31},
        {"word": "ba", "start": 0.8, "end": 1.0, "probability": None},
    ]
    [segment] = json.loads(captions.render(SURE, "json"))["segments"]
    assert segment["words"] == words and segment["text"] == "một hai ba"
    words[1]["doubtful"] = True
    [segment] = json.loads(captions.render(SURE, "json", Style(9, min_confidence=0.5)))["segments"]
    assert segment["words"] == words
    nothing = transcript_of_words([0, 1])
    assert "words" not in json.loads(captions.render(nothing, "json"))["segments"][0]
    assert captions.render(nothing, "vtt", Style(9, 1, min_confidence=0.5)) == "WEBVTT\n"


def test_words_are_never_markup():
    odd = transcript_of_words([0, 1, ("<u>", 0.0, 0.5), ("-->", 0.5, 1.0)])
    assert captions.render(odd, "vtt", Style(highlight_words=True)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.500\n<u>&lt;u&gt;</u> --&gt;\n\n"
        "00:00:00.500 --> 00:00:01.000\n&lt;u&gt; <u>--&gt;</u>\n"
    )


def test_what_needs_words_or_their_confidence_says_so():
    unsure = transcript_of_words([0, 1, ("một", 0.0, 0.5)])
    segments = tuple(dataclasses.replace(segment, words=None) for segment in unsure.segments)
    wordless = dataclasses.replace(unsure, segments=segments)
    for style, names in (
        (Style(max_line_width=42, highlight_words=True), "max_line_width and highlight_words need:"),
        (Style(word_timestamps=True), "word_timestamps needs:"), (Style(max_words_per_line=1), "per_line needs:"),
        (Style(min_confidence=0.0), "min_confidence needs:"),
    ):  # fmt: skip
        for form in ("srt", "vtt", "txt", "json"):
            with pytest.raises(InputError, match=f"does not tell when each word is said, which .*{names}"):
                captions.render(wordless, form, style)
    assert captions.render(wordless, "txt", PLAIN) == captions.render(wordless, "txt", Style(max_line_count=2))
    with pytest.raises(InputError, match="how likely its words are right, which min_confidence needs"):
        captions.render(unsure, "srt", Style(min_confidence=0.5))


@pytest.mark.parametrize(("options", "message"), [
    ({"max_line_width": 0}, "max_line_width is 0"), ({"max_line_count": -1}, "max_line_count is -1"),
    ({"max_words_per_line": 0}, "max_words_per_line is 0"), ({"min_confidence": 1.1}, "min_confidence is 1.1"),
    ({"min_confidence": float("nan")}, "min_confidence is nan, expected a number from 0 to 1"),
])  # fmt: skip
def test_numbers_out_of_bounds(options, message):
    with pytest.raises(InputError, match=message):
        Style(**options)
