"""Small recordings that the page is given."""

import fractions
import pathlib
import wave
from collections.abc import Sequence

import av
import numpy as np

RATE = 16_000


def film(
    path: pathlib.Path, pictures: Sequence[np.ndarray], samples: np.ndarray | None = None, seconds: float = 0.04
) -> pathlib.Path:
    """Writes uint8[H, W, 3], one every so many seconds, and int16[n] at 16 kHz."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        audio = None if samples is None else container.add_stream("aac", rate=RATE, layout="mono")
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(25 * number * seconds), fractions.Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def noise(count: int, height: int = 120, width: int = 160) -> list[np.ndarray]:
    """Pictures without a face."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (height, width, 3), np.uint8) for _ in range(count)]


def sound(path: pathlib.Path, samples: np.ndarray) -> pathlib.Path:
    """Writes int16[n] at 16 kHz as wav."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path
