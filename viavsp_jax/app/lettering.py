"""Text as it is written on pictures: white letters with a dark edge, at the bottom, in lines that fit.

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


@functools.lru_cache(maxsize=2)  # a text stays for many pictures
def lettering(text: str, width: int, height: int, black: int = 16, white: int = 235) -> Lettering | None:
    """A text for pictures of a size.

    Args:
      text: of any length; what cannot be printed is left out.
      width, height: both even.
      black, white: what they are in the first plane.

    Returns None if there is nothing to write, or no room for it.
    """
    words = "".join(one if one.isprintable() else " " for one in unicodedata.normalize("NFC", text)).split()
    margin = 1 + min(width, height) // 40
    for size, room in _sizes(width, height) if words else ():
        font, edge = _font(size), max(1, round(size / _EDGE))
        lines = _lines(words, font, width - 2 * (margin + edge))
        if not lines:
            continue
        step = round(size * _STEP)
        left, tops, right, lows = zip(
            *(font.getbbox(line, anchor="ms", stroke_width=edge) for line in lines), strict=True
        )
        above = 1 - min(top + row * step for row, top in enumerate(tops))
        # As far below the last line whatever is in it, so that texts that follow each other stand on the same.
        below = 1 + max(*(low - row * step for row, low in enumerate(reversed(lows))), size // 4 + edge)
        tall = math.ceil(above + (len(lines) - 1) * step + below)
        above, tall = above + tall % 2, tall + tall % 2
        if tall + margin <= room and max(right) - min(left) <= width - 2:
            covered, inside = _masks(lines, font, edge, (width, tall), above, step)
            return Lettering((height - margin - tall) // 2 * 2, _layers(covered, inside, black, white))
    return None


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


def _lines(words: Sequence[str], font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The words in lines that are no wider than asked; none if a letter is. A word that is wider is broken."""
    lines: list[str] = []
    for word in words:
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        length = 0.0
        for letter in word:
            advance = font.getlength(letter)
            if advance > width:
                return []
            if length + advance > width:
                lines.append("")
                length = 0.0
            lines[-1] += letter
            length += advance
    return lines


def _masks(
    lines: Sequence[str], font: ImageFont.FreeTypeFont, edge: int, size: tuple[int, int], first: float, step: int
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
            draw.text(at, line, 255, font, anchor="ms", stroke_width=around)
        masks.append(np.array(image))
    return masks[0], np.minimum(*masks)


def _layers(covered: np.ndarray, inside: np.ndarray, black: int, white: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is kept of each plane, 255 all of it, and what is added then."""
    added = (black * (covered.astype(np.float32) - inside) + white * inside.astype(np.float32)) / 255
    halved = cv2.resize(covered, (covered.shape[1] // 2, covered.shape[0] // 2), interpolation=cv2.INTER_AREA)
    grey = (255 - halved, np.rint(halved * np.float32(128 / 255)).astype(np.uint8))
    return [(255 - covered, np.rint(added).astype(np.uint8)), grey, grey]
