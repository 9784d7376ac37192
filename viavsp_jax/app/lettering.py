"""Text as it is written on pictures: white letters with a dark edge, at the bottom, in lines that fit.

The font is DejaVu Sans, which comes with matplotlib and has all letters of Vietnamese.

Letters: H, W height and width of a picture; h, w of the part of it that the text takes. All are even, as colours are
stored for squares of four pixels (yuv420p).
"""

import dataclasses
import functools
import importlib.util
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHARE = 18  # letters are so many times smaller than the shorter side
_READABLE = 13  # pixels; smaller ones only where the text does not fit otherwise
_EDGE = 12  # letters are so many times larger than their edge is wide
# In sizes of the letters: the highest (two accents on a capital) above its line and the lowest below, line to line.
_ABOVE, _BELOW, _STEP = 1.1, 0.25, 1.3


@dataclasses.dataclass(frozen=True)
class Lettering:
    """A text, ready to be laid on pictures of one size."""

    left: int  # of the part it takes, even
    top: int
    layers: Sequence[tuple[np.ndarray, np.ndarray]]  # of each plane, see lay_on; uint8[h, w], twice [h / 2, w / 2]

    def lay_on(self, planes: Sequence[np.ndarray]) -> None:
        """Writes the text on the planes of a picture: uint8[H, W], twice [H / 2, W / 2]."""
        for plane, (kept, added), halves in zip(planes, self.layers, (1, 2, 2), strict=True):
            left, top = self.left // halves, self.top // halves
            part = plane[top : top + kept.shape[0], left : left + kept.shape[1]]
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
    for size, room in _sizes(width, height) if words else ():
        edge = max(1, round(size / _EDGE))
        margin = edge + min(width, height) // 40
        lines = _lines(words, _font(size), width - 2 * margin)
        tall = round(size * (_ABOVE + _BELOW + _STEP * (len(lines) - 1))) + 2 * edge
        if lines and tall <= room - 2 * (margin - edge):
            covered, inside = _masks(lines, size, edge, width, tall + tall % 2)
            top = (height - (margin - edge) - len(covered)) // 2 * 2
            return Lettering(0, max(0, top), _layers(covered, inside, black, white))
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


def _masks(lines: Sequence[str], size: int, edge: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel is taken by letters with their edge, and by letters: uint8[h, W], 255 all of it."""
    masks = []
    for around in (edge, 0):
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for number, line in enumerate(lines):
            at = (width / 2, edge + size * (_ABOVE + _STEP * number))
            draw.text(at, line, 255, _font(size), anchor="ms", stroke_width=around)
        masks.append(np.array(image))
    return masks[0], np.minimum(*masks)


def _layers(covered: np.ndarray, inside: np.ndarray, black: int, white: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is kept of each plane, 255 all of it, and what is added then."""
    added = (black * (covered.astype(np.float32) - inside) + white * inside.astype(np.float32)) / 255
    halved = cv2.resize(covered, (covered.shape[1] // 2, covered.shape[0] // 2), interpolation=cv2.INTER_AREA)
    grey = (255 - halved, np.rint(halved * np.float32(128 / 255)).astype(np.uint8))
    return [(255 - covered, np.rint(added).astype(np.uint8)), grey, grey]
