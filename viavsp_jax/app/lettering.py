"""Text as it is written on pictures: light letters with a dark edge, at the bottom, in lines that fit.

The font is DejaVu Sans, which comes with matplotlib and has all letters of Vietnamese.

Letters: H, W height and width of a picture; h height of the part of it that the text takes. All are even, as video
holds colours for squares of four pixels (yuv420p).
"""

import dataclasses
import functools
import importlib.util
import math
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHARE = 18  # letters are so many times smaller than the shorter side
_READABLE = 13  # pixels; smaller ones only where the text does not fit otherwise
_EDGE = 12  # letters are so many times larger than their edge is wide
_STEP = 1.3  # from line to line, in sizes of the letters; a capital may carry two accents
# Of letters: those of most words, of a word that is spoken and of one that may be wrong. All are light, as their edge
# is black.
_WHITE, _YELLOW, _BLUE = (255, 255, 255), (255, 216, 0), (120, 200, 255)

Planes = tuple[int, int, int]  # what a colour is in each plane


@dataclasses.dataclass(frozen=True)
class Run:
    """A part of a line, one or several words that look alike."""

    text: str  # what cannot be printed is left out
    spoken: bool = False  # just now
    doubtful: bool = False

    @property
    def colour(self) -> tuple[int, int, int]:
        """Red, green, blue."""
        return _YELLOW if self.spoken else _BLUE if self.doubtful else _WHITE


@dataclasses.dataclass(frozen=True)
class Lettering:
    """A text, ready to be laid on pictures of one size."""

    top: int  # of the part it takes, even
    layers: Sequence[tuple[np.ndarray, np.ndarray]]  # of each plane, see lay_on; uint8[h, W], twice [h / 2, W / 2]

    def lay_on(self, planes: Sequence[np.ndarray]) -> None:
        """Writes the text on the planes of a picture: uint8[H, W], twice [H / 2, W / 2]."""
        for plane, (kept, added), halves in zip(planes, self.layers, (1, 2, 2), strict=True):
            part = plane[self.top // halves :][: len(kept)]
            part[:] = cv2.add(cv2.multiply(part, kept, scale=1 / 255), added)


def planes_of(colour: tuple[int, int, int], full: bool) -> Planes:
    """What a colour (red, green, blue) is in each plane, by the formula of HD video; that of others is not far from it.

    `full` is whether the planes use all numbers from 0 to 255.
    """
    red, green, blue = colour
    grey = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    black, white = (0, 255) if full else (16, 235)
    first = grey / 255 * (white - black) + black
    share = 1 if full else 224 / 255
    tints = (blue - grey) / 1.8556, (red - grey) / 1.5748
    return round(first), *(min(255, round(128 + share * one)) for one in tints)


@functools.lru_cache(maxsize=2)  # a text stays for many pictures
def lettering(text: tuple[tuple[Run, ...], ...], width: int, height: int, full: bool = False) -> Lettering | None:
    """A text for pictures of a size.

    Args:
      text: lines, of any length: longer ones become several.
      width, height: both even.
      full: see planes_of.

    Returns None if there is nothing to write, or no room for it.
    """
    wanted = [words for line in text if (words := _words(line))]
    margin = 1 + min(width, height) // 40
    for size, room in _sizes(width, height) if wanted else ():
        font, edge = _font(size), max(1, round(size / _EDGE))
        lines = _lines(wanted, font, width - 2 * (margin + edge))
        if not lines:
            continue
        step = round(size * _STEP)
        left, tops, right, lows = zip(
            *(font.getbbox(_joined(line), anchor="ms", stroke_width=edge) for line in lines), strict=True
        )
        above = 1 - min(top + row * step for row, top in enumerate(tops))
        # As far below the last line whatever is in it, so that texts that follow each other stand on the same.
        below = 1 + max(*(low - row * step for row, low in enumerate(reversed(lows))), size // 4 + edge)
        tall = math.ceil(above + (len(lines) - 1) * step + below)
        above, tall = above + tall % 2, tall + tall % 2
        if tall + margin <= room and max(right) - min(left) <= width - 2:
            covered, inside = _masks(lines, font, edge, (width, tall), above, step)
            colours = _colours(lines, font, (width, tall), above, step, full)
            return Lettering((height - margin - tall) // 2 * 2, _layers(covered, inside, colours, full))
    return None


def _words(line: Sequence[Run]) -> list[Run]:
    """Each word of a line as a run of its own."""
    cleaned = (
        (run, "".join(one if one.isprintable() else " " for one in unicodedata.normalize("NFC", run.text)))
        for run in line
    )
    return [dataclasses.replace(run, text=word) for run, text in cleaned for word in text.split()]


def _joined(line: Sequence[Run]) -> str:
    return " ".join(run.text for run in line)


def _sizes(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Sizes of letters, the best one first, and how high the text may then be."""
    size = max(_READABLE, min(width, height) // _SHARE)
    while size >= _READABLE:
        yield size, height // 2
        size = size * 9 // 10
    yield from ((size, height) for size in range(_READABLE, 0, -1))


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """With lines so many pixels high."""
    # Found without an import, which would make all ready to draw figures.
    folder = pathlib.Path(importlib.util.find_spec("matplotlib").origin).parent
    return ImageFont.truetype(folder / "mpl-data/fonts/ttf/DejaVuSans.ttf", size, layout_engine=ImageFont.Layout.BASIC)


def _lines(wanted: Sequence[Sequence[Run]], font: ImageFont.FreeTypeFont, width: int) -> list[list[Run]]:
    """The lines, or several for one, no wider than asked; none if a letter is wider. A word that is wider is broken."""
    lines: list[list[Run]] = []
    for words in wanted:
        lines.append([])
        for word in words:
            if font.getlength(_joined([*lines[-1], word])) <= width:
                lines[-1].append(word)
                continue
            parts = _broken(word.text, font, width)
            if not parts:
                return []
            lines += [[dataclasses.replace(word, text=part)] for part in parts]
    return [line for line in lines if line]


def _broken(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A word in parts that are no wider than asked, one if all of it is not; none if a letter is wider."""
    parts, length = [""], 0.0
    for letter in word:
        advance = font.getlength(letter)
        if advance > width:
            return []
        if length + advance > width:
            parts.append("")
            length = 0.0
        parts[-1] += letter
        length += advance
    return parts


def _masks(
    lines: Sequence[Sequence[Run]],
    font: ImageFont.FreeTypeFont,
    edge: int,
    size: tuple[int, int],
    first: float,
    step: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel is taken by letters with their edge, and by letters: uint8[h, W], 255 all of it.

    Args:
      size: width and height.
      first: where the letters of the first line stand, in pixels from above.
      step: pixels from line to line.
    """
    masks = []
    for around in (edge, 0):
        image = Image.new("L", size)
        draw = ImageDraw.Draw(image)
        for number, line in enumerate(lines):
            at = (size[0] // 2, first + number * step)
            draw.text(at, _joined(line), 255, font, anchor="ms", stroke_width=around)
        masks.append(np.array(image))
    return masks[0], np.minimum(*masks)


def _colours(
    lines: Sequence[Sequence[Run]],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    first: float,
    step: int,
    full: bool,
) -> list[np.ndarray]:
    """What letters are in each plane, at each pixel of the first one: uint8[h, W], three times; see _masks, planes_of.

    Words are drawn line by line, so that letters stand where they stand in another colour.
    """
    width, tall = size
    planes = [np.full((tall, width), value, np.uint8) for value in planes_of(_WHITE, full)]
    space = font.getlength(" ") / 2
    for number, line in enumerate(lines):
        # From below what hangs down from the line above; the lines below come later.
        rows = slice(max(0, round(first + (number - 1) * step + font.size / 4)), None)
        left = width // 2 - font.getlength(_joined(line)) / 2
        for index, run in enumerate(line):
            end = left + font.getlength(_joined(line[: index + 1])) + space
            start = end - font.getlength(run.text) - 2 * space
            for plane, value in zip(planes, planes_of(run.colour, full), strict=True):
                plane[rows, max(0, round(start)) : round(end)] = value
    return planes


def _layers(
    covered: np.ndarray, inside: np.ndarray, colours: Sequence[np.ndarray], full: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is kept of each plane, 255 all of it, and what is added then."""
    black, *_ = planes_of((0, 0, 0), full)
    brightness, *tints = (colour.astype(np.float32) for colour in colours)
    added = (black * (covered.astype(np.float32) - inside) + brightness * inside.astype(np.float32)) / 255
    layers = [(255 - covered, np.rint(added).astype(np.uint8))]
    kept = _halved(covered)
    for tint in tints:
        added = (128 * kept.astype(np.float32) + _halved((tint - 128) * inside)) / 255
        layers.append((255 - kept, np.rint(added).clip(0, 255).astype(np.uint8)))
    return layers


def _halved(plane: np.ndarray) -> np.ndarray:
    """Squares of four pixels as one."""
    return cv2.resize(plane, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA)
