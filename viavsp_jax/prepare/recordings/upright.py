"""Decoded pictures as they are seen: turned upright, of square pixels, fitted in where a file changes their shape.

Letters: H, W height and width of a picture.
"""

from fractions import Fraction

import av
import cv2
import numpy as np

_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}
_MOST_OBLONG = 4  # width of a pixel by its height, or the other way round; more than that is a mistake


def oblong(stream: av.stream.Stream) -> Fraction:
    """Width of a pixel by its height."""
    ratio = stream.sample_aspect_ratio or Fraction(1)
    return ratio if Fraction(1, _MOST_OBLONG) <= ratio <= _MOST_OBLONG else Fraction(1)


def upright(
    frame: av.VideoFrame, size: tuple[int, int], oblong: Fraction, turns: int, **wanted: object
) -> list[np.ndarray]:
    """A picture as large as fits in the middle of another.

    Args:
      size: width and height of that.
      oblong: width of a decoded pixel by its height.
      turns: quarter turns to the left that it takes.
      wanted: what VideoFrame.reformat takes; the format is one of 8 bits.

    Returns its planes, uint8[H, W] or [H, W, 3]. Its sides are smaller than `size` by even numbers.

    Raises av.FFmpegError or ValueError if it cannot be converted.
    """
    width, height = size if turns % 2 == 0 else size[::-1]
    scale = min(width / (frame.width * oblong), height / frame.height)
    inner = [round(frame.width * oblong * scale), round(frame.height * scale)]
    left, top = max(0, width - inner[0]) // 2, max(0, height - inner[1]) // 2
    frame = frame.reformat(max(1, width - 2 * left), max(1, height - 2 * top), **wanted)
    planes = [frame.to_ndarray()] if len(frame.planes) == 1 else map(pixels, frame.planes)
    return [cv2.rotate(plane, _TURNS[turns]) if turns else plane for plane in planes]


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
