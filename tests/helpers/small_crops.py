"""Mouth crops that can be told from each other, in any coding."""

import pathlib
from collections.abc import Mapping
from fractions import Fraction

import av
import cv2
import numpy as np


def _pictures(count: int) -> np.ndarray:
    """Blurred noise, of high contrast: uint8[count, 96, 96]."""
    rng = np.random.default_rng(0)
    blurred = [cv2.GaussianBlur(rng.integers(0, 256, (96, 96)).astype(np.float32), (0, 0), 4) for _ in range(count)]
    return ((np.stack(blurred) - 127.5) * 6 + 127.5).clip(16, 235).astype(np.uint8)


PICTURES = _pictures(12)


def write_crops(
    path: pathlib.Path,
    codec: str,
    options: Mapping[str, str] | None = None,
    form: str = "yuv420p",
    rotation: int = 0,
    change: Mapping[int, np.ndarray] | None = None,
) -> pathlib.Path:
    """Writes PICTURES at 25 a second, but BGR pictures of any size in place of some (each is coded by itself then)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 96, form, 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(PICTURES):
            bgr = (change or {}).get(number, cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
            frame = av.VideoFrame.from_ndarray(bgr, "bgr24").reformat(format=form)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            if change and number in change:
                other = av.CodecContext.create(codec, "w")
                other.height, other.width = bgr.shape[:2]
                other.pix_fmt, other.time_base = form, frame.time_base
                packets = [*other.encode(frame), *other.encode(None)]
                for packet in packets:
                    packet.stream = stream
            else:
                packets = stream.encode(frame)
            container.mux(packets)
        container.mux(stream.encode(None))
    return path
