"""Text on pictures: all letters of Vietnamese, white with a dark edge, never out of the picture."""

import unicodedata

import numpy as np
import pytest

from viavsp_jax.app import lettering
from viavsp_jax.app.lettering import Run

TONES = ["", "\u0300", "\u0301", "\u0303", "\u0309", "\u0323"]
LOWER = {unicodedata.normalize("NFC", vowel + tone) for vowel in "aăâeêioôơuưy" for tone in TONES} | {"đ"}
LETTERS = sorted({letter for lower in LOWER for letter in (lower, lower.upper()) if not letter.isascii()})
SENTENCE = "sáng nay em gái vẫn nấu mười bát phở ngon ở nhà trường"
UNKNOWN = "中"  # the font does not have it


def line(text):
    return ((Run(text),),)


def drawn(text, width=320, height=240, brightness=235, colour=200):
    """The planes of a picture of one colour with a text."""
    planes = [np.full((height, width), brightness, np.uint8)]
    planes += [np.full((height // 2, width // 2), colour, np.uint8) for _ in range(2)]
    lettering.lettering(line(text), width, height).lay_on(planes)
    return planes


@pytest.mark.parametrize("size", [(160, 120), (320, 240), (1920, 1080)])
def test_every_letter_of_vietnamese_looks_like_itself(size):
    assert len(LETTERS) == 134 and all(len(letter) == 1 for letter in LETTERS)
    looks = {drawn(letter, *size)[0].tobytes() for letter in [*LETTERS, *"aeiouyAEIOUY", UNKNOWN]}
    assert len(looks) == 134 + 12 + 1


def test_letters_in_parts_are_put_together():
    apart = unicodedata.normalize("NFD", SENTENCE)
    assert apart != SENTENCE
    np.testing.assert_array_equal(drawn(apart)[0], drawn(SENTENCE)[0])
    np.testing.assert_array_equal(drawn("một\x00\n hai\u200b")[0], drawn("một hai")[0])


def test_lines_are_kept_and_broken_where_they_are_too_long():
    assert broken(["một", "hai"], ["ba"]) == ["một hai", "ba"]
    assert broken(["một"], ["y" * 30, "z"], ["hai"])[0::3] == ["một", "hai"]


@pytest.mark.parametrize("size", [(160, 120), (1080, 1920), (1920, 1080), (3840, 2160), (96, 96), (640, 64), (24, 400)])
@pytest.mark.parametrize("text", ["Ẵ", SENTENCE, "Ổ" * 90, " ".join([SENTENCE.upper()] * 6), "Ậ\u0302\u0323"])
def test_text_stays_in_the_picture(text, size):
    width, height = size
    found = lettering.lettering(line(text), width, height)
    kept, added = found.layers[0]
    assert 0 <= found.top and found.top + len(kept) < height and kept.shape[1] == width
    # Nothing is cut off: around the letters and their edge there is a pixel at least.
    for side in (kept[0], kept[-1], kept[:, 0], kept[:, -1]):
        assert side.min() == 255
    assert (added > 200).any()
    for (part, _), halves in zip(found.layers, (1, 2, 2), strict=True):
        assert part.shape == (kept.shape[0] // halves, kept.shape[1] // halves)


def test_all_of_a_text_is_there():
    """What is white grows with the text where it is wrapped, and not where letters are lost."""
    words = SENTENCE.split()
    one_by_one = sum((drawn(word, 1920, 1080, 16)[0] > 200).sum() for word in words)
    assert (drawn(SENTENCE, 1920, 1080, 16)[0] > 200).sum() == pytest.approx(one_by_one, rel=0.01)
    lines = broken(words)
    assert " ".join(lines) == SENTENCE and len(lines) > 2
    assert max(lettering._font(20).getlength(line) for line in lines) <= 200
    parts = broken(["x", "y" * 100])
    assert "".join(parts) == "x" + "y" * 100 and len(parts) > 3


def broken(*lines):
    """Lines of words as they fit into 200 pixels."""
    runs = [[Run(word) for word in words] for words in lines]
    return [" ".join(run.text for run in line) for line in lettering._lines(runs, lettering._font(20), 200)]


@pytest.mark.parametrize("brightness", [235, 120, 16])
def test_letters_are_white_with_a_dark_edge_on_any_ground(brightness):
    grey, *colours = drawn(SENTENCE, 320, 240, brightness)
    assert (grey > 200).sum() > 300 and (grey < 40).sum() > 300
    assert grey.min() >= 16 and grey.max() <= 235
    white = np.argwhere(grey[::2, ::2] == 235) if brightness != 235 else np.empty((0, 2), int)
    for colour in colours:  # none in the letters, all of it elsewhere
        assert np.abs(colour[tuple(white.T)].astype(int) - 128).mean() < 15 if len(white) else True
        assert (colour[:60] == 200).all()
    assert (grey[:120] == brightness).all()


@pytest.mark.parametrize(("colour", "full", "expected"), [  # the colour bars of HD video
    ((255, 255, 255), False, (235, 128, 128)), ((0, 0, 0), False, (16, 128, 128)),
    ((255, 255, 0), False, (219, 16, 138)), ((0, 255, 0), False, (173, 42, 26)),
    ((255, 0, 0), False, (63, 102, 240)), ((0, 0, 255), False, (32, 240, 118)),
    ((255, 255, 255), True, (255, 128, 128)), ((0, 0, 255), True, (18, 255, 116)),
])  # fmt: skip
def test_colours_are_those_of_hd_video(colour, full, expected):
    assert lettering.planes_of(colour, full) == expected


def test_words_that_are_spoken_or_doubtful_have_colours_of_their_own():
    runs = [Run("một"), Run("hai", spoken=True), Run("ba", doubtful=True), Run("bốn", spoken=True, doubtful=True)]
    for text in (tuple((run,) for run in runs), (tuple(runs),)):
        found = lettering.lettering(text, 1920, 1080)
        plain = lettering.lettering(tuple(tuple(Run(run.text) for run in line) for line in text), 1920, 1080)
        assert found.top == plain.top
        for (kept, _), (other, _) in zip(found.layers, plain.layers, strict=True):
            np.testing.assert_array_equal(kept, other)  # the letters stay where they are
        shown = [added for _, added in found.layers]
        # Where four pixels lie in a letter, they have its colour; the words stand side by side or one below another.
        inside = (plain.layers[0][1] == 235).reshape(shown[1].shape[0], 2, -1, 2).all((1, 3))
        places = np.argwhere(inside)
        order = places[:, 0] if len(text) > 1 else places[:, 1]
        colours = [tuple(int(plane[y, x]) for plane in (shown[0][::2, ::2], *shown[1:])) for y, x in places]
        ends = []
        for rgb in ((255, 255, 255), (255, 216, 0), (120, 200, 255)):
            mine = [place for place, one in zip(order, colours, strict=True) if one == lettering.planes_of(rgb, False)]
            ends.append((min(mine), max(mine), len(mine)))
        (_, white, _), (yellow, last_yellow, many), (blue, last_blue, _) = ends
        assert white < yellow < blue < last_blue < last_yellow  # of a word that is both, yellow is what is seen
        assert sum(count for *_, count in ends) == len(places) and many > 100


def test_letters_grow_with_the_picture():
    heights = []
    for size in ((160, 120), (320, 240), (1280, 720), (1920, 1080), (1080, 1920), (3840, 2160)):
        rows = np.flatnonzero((drawn("m", *size, 16)[0] > 200).any(1))
        heights.append(len(rows))
    assert (
        heights == sorted(heights) and heights[0] >= 7 and heights[3] == heights[4] and heights[5] >= 1.9 * heights[3]
    )


def test_nothing_to_write_and_no_room():
    for empty in ((), ((),), line(""), line(" \n\x00")):
        assert lettering.lettering(empty, 320, 240) is None
    assert lettering.lettering(line("trường"), 2, 2) is None
