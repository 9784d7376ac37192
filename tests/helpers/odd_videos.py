"""Videos as cameras, phones and programs write them, small and made on the spot; and what is in a file."""

import pathlib
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np


def scene(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """BGR pictures: gradients in which a bright square goes to the right."""
    down, across = np.mgrid[:height, :width]
    ground = np.stack([across * 200 // width, down * 200 // height, 200 - across * 200 // width], -1).astype(np.uint8)
    pictures = []
    for index in range(count):
        picture = ground.copy()
        left = index * (width - 16) // max(1, count - 1)
        picture[8:24, left : left + 16] = 255
        pictures.append(picture)
    return pictures


def write(
    path: pathlib.Path,
    pictures: Sequence[np.ndarray],
    rate: int | Fraction = 25,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    form: str = "yuv420p",
    sound: str | None = None,
    sound_rate: int = 48_000,
    layout: str = "stereo",
    seconds: float = 2.0,
    sound_start: float = 0.0,
    rotation: int = 0,
    oblong: Fraction | None = None,
    wave: np.ndarray | None = None,
    bit_rate: int | None = None,
) -> pathlib.Path:
    """Writes pictures in a codec and pixel format, if any, and sound in another codec.

    The sound is `wave`, float[channels, n] from -1 to 1, or a tone in each channel; `bit_rate` is its own, pictures of
    codecs without a quality of their own get much more.
    """
    with av.open(str(path), "w") as container:
        if pictures:
            video = container.add_stream(codec, rate=rate)
            video.height, video.width = pictures[0].shape[:2]
            video.pix_fmt = form
            if bit_rate:
                video.bit_rate = 30 * bit_rate
            unit = video.codec_context.time_base = 1 / Fraction(rate) if times is None else Fraction(1, 1000)
            if oblong:
                video.codec_context.sample_aspect_ratio = oblong
            if rotation:
                video.set_display_rotation(rotation)
        audio = container.add_stream(sound, rate=sound_rate, layout=layout) if sound else None
        if audio and bit_rate:
            audio.bit_rate = bit_rate
        if sound == "vorbis":
            audio.codec_context.options = {"strict": "experimental"}
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = index if times is None else round(times[index] * 1000), unit
            container.mux(video.encode(frame))
        if pictures:
            container.mux(video.encode(None))
        if audio:
            if wave is None:
                tones = 300 + 150 * np.arange(audio.layout.nb_channels)[:, None]
                wave = 0.3 * np.sin(2 * np.pi * tones * np.arange(round(seconds * sound_rate)) / sound_rate)
            frame = av.AudioFrame.from_ndarray(wave.astype(np.float32), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = sound_rate, round(sound_start * sound_rate)
            resampler = av.AudioResampler(audio.codec_context.format, layout, sound_rate)
            for one in (*resampler.resample(frame), None):
                container.mux(audio.encode(one))
    return path


def pictures(path: pathlib.Path) -> tuple[list[Fraction], list[np.ndarray]]:
    """Times and BGR pictures, as decoded."""
    with av.open(str(path)) as container:
        frames = [
            (frame.pts * frame.time_base, frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)
        ]
    return [time for time, _ in frames], [picture for _, picture in frames]


def packets(path: pathlib.Path) -> list[bytes]:
    """Of the sound, as they lie in the file."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def samples(path: pathlib.Path) -> tuple[float, int, np.ndarray]:
    """When the sound begins, its rate, and float32[channels, n]."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp")
        frames = [one for frame in container.decode(audio=0) for one in resampler.resample(frame)]
    return frames[0].time, frames[0].sample_rate, np.concatenate([frame.to_ndarray() for frame in frames], 1)
