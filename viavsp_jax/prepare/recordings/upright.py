"""Decoded pictures as they are seen: turned upright, of square pixels, fitted in where a file changes their shape.

Letters: H, W height and width of a picture.
"""

from fractions import Fraction
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type

_MOST_OBLONG = 4  # width of a pixel by its height, or the other way round; more than that is a mistake


class Orientation(NamedTuple):
    """How a decoded picture becomes one that is upright: transposed first, then mirrored."""

    transposed: bool = False
    left_right: bool = False
    upside_down: bool = False

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """[H, W] or [H, W, 3] → the same or [W, H] …"""
        picture = cv2.transpose(picture) if self.transposed else picture
        if self.left_right or self.upside_down:
            picture = cv2.flip(picture, -1 if self.left_right and self.upside_down else 1 if self.left_right else 0)
        return picture


def orientation(frame: av.VideoFrame) -> Orientation:
    """Of a frame, by the matrix of its container (ISO/IEC 14496-12, 6.2.2): phones turn and mirror their pictures so.

    Other angles than quarter turns are those of the nearest one.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def oblong(stream: av.stream.Stream) -> Fraction:
    """Width of a pixel by its height."""
    ratio = stream.sample_aspect_ratio or Fraction(1)
    return ratio if Fraction(1, _MOST_OBLONG) <= ratio <= _MOST_OBLONG else Fraction(1)


def upright(
    frame: av.VideoFrame, size: tuple[int, int], oblong: Fraction, orientation: Orientation, **wanted: object
) -> list[np.ndarray]:
    """A picture as large as fits in the middle of another.

    Args:
      size: width and height of that.
      oblong: width of a decoded pixel by its height.
      orientation: how it becomes upright.
      wanted: what VideoFrame.reformat takes; the format is one of 8 bits.

    Returns its planes, uint8[H, W] or [H, W, 3]. Its sides are smaller than `size` by even numbers.

    Raises av.FFmpegError or ValueError if it cannot be converted.
    """
    width, height = size[::-1] if orientation.transposed else size
    scale = min(width / (frame.width * oblong), height / frame.height)
    inner = [round(frame.width * oblong * scale), round(frame.height * scale)]
    left, top = max(0, width - inner[0]) // 2, max(0, height - inner[1]) // 2
    frame = frame.reformat(max(1, width - 2 * left), max(1, height - 2 * top), **wanted)
    planes = [frame.to_ndarray()] if len(frame.planes) == 1 else map(pixels, frame.planes)
    return [orientation.apply(plane) for plane in planes]


def bordered(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What `upright` gives, with black around: uint8[H, W, 3]."""
    left, top = ((whole - own) // 2 for whole, own in zip(size, picture.shape[1::-1], strict=True))
    if left or top:
        picture = cv2.copyMakeBorder(picture, top, top, left, left, cv2.BORDER_CONSTANT)
    return picture


def pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """What is seen of a plane of 8-bit numbers, which stays where it is: uint8[H, W]."""
    step = abs(plane.line_size)
    rows = np.frombuffer(plane, np.uint8, plane.height * step).reshape(plane.height, step)[:, : plane.width]
    return rows if plane.line_size > 0 else rows[::-1]
