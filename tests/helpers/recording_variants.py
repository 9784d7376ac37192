"""One recording, a face of a wheel with three sentences of the demo's voices, in the forms that people have."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import scipy.signal
from odd_videos import write
from real_videos import SPEECH

from viavsp_jax.prepare.demo.corpus import SPEAKERS
from viavsp_jax.prepare.demo.sentences import sample_sentences
from viavsp_jax.prepare.demo.speech import synthesize
from viavsp_jax.prepare.recordings.recording import read_recording

RATE = 16_000
Pictures = list[np.ndarray]


def sentences() -> tuple[str, np.ndarray]:
    """Three sentences with pauses, as long as the pictures: their words and int16[n]."""
    texts = sample_sentences(0, 3, "test")
    said = [synthesize(text, SPEAKERS["test"][0]).samples for text in texts]
    pause = np.random.default_rng(0).normal(0, 5, RATE // 2).astype(np.int16)
    return " ".join(texts), np.concatenate([part for one in said for part in (pause, one)])


def faces(count: int) -> Pictures:
    """A speaking man before a silent one, 320x240, 25 a second."""
    pictures = [frame.copy() for frame in read_recording(SPEECH).frames()]
    return [pictures[min(index, len(pictures) - 1)] for index in range(count)]


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a file differs from an mp4 of H.264 and AAC with 25 pictures a second and 48 kHz stereo."""

    name: str
    ending: str = "mp4"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # of odd_videos.write
    look: Callable[[np.ndarray], np.ndarray] = lambda picture: picture
    hear: Callable[[np.ndarray], np.ndarray] = lambda wave: np.stack([wave, wave])  # float[n] → float[channels, n]
    rate: float = 25.0
    pictures: bool = True
    repeats: int = 1  # of the file, appended to itself
    late: float = 0.0  # seconds by which the pictures begin later than the sound

    def write(self, folder: pathlib.Path, pictures: Pictures, samples: np.ndarray) -> pathlib.Path:
        """Writes the file; `pictures` are 25 a second."""
        path = folder / f"{self.name.replace(' ', '_').replace('/', '_')}.{self.ending}"
        settings = {"sound": "aac", "sound_rate": 48_000, "layout": "stereo"} | self.settings
        if not settings["sound"].startswith(("pcm", "alac", "flac", "vorbis")):
            settings["bit_rate"] = 32_000 if settings["sound_rate"] < 44_100 else 160_000
        count = round(len(pictures) / 25 * self.rate)
        shown = [self.look(pictures[min(len(pictures) - 1, round(n * 25 / self.rate))]) for n in range(count)]
        if self.late:
            settings["times"] = [self.late + n / self.rate for n in range(count)]
        elif "times" not in settings:
            settings["rate"] = Fraction(self.rate).limit_denominator(1001)
        wave = scipy.signal.resample_poly(samples / 32768, settings["sound_rate"], RATE)
        write(path, shown if self.pictures else [], wave=self.hear(wave), **settings)
        if self.repeats > 1:
            path.write_bytes(path.read_bytes() * self.repeats)
        return path


def mono(wave: np.ndarray) -> np.ndarray:
    return wave[None]


def around(wave: np.ndarray) -> np.ndarray:
    """5.1, the voice in the middle."""
    return np.stack([0 * wave, 0 * wave, wave, 0 * wave, 0 * wave, 0 * wave])


def on_canvas(height: int, width: int, size: float) -> Callable[[np.ndarray], np.ndarray]:
    """The picture, made larger or smaller, in the middle of a grey one."""

    def look(picture: np.ndarray) -> np.ndarray:
        small = cv2.resize(
            picture, None, fx=size, fy=size, interpolation=cv2.INTER_AREA if size < 1 else cv2.INTER_CUBIC
        )
        canvas = np.full((height, width, 3), 110, np.uint8)
        top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        return canvas

    return look


def tilted(degrees: float) -> Callable[[np.ndarray], np.ndarray]:
    def look(picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
        return cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)

    return look


def scaled(height: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda picture: cv2.resize(picture, (height * 4 // 3, height), interpolation=cv2.INTER_CUBIC)


def video(name: str, ending: str, codec: str, sound: str, form: str = "yuv420p", **settings: Any) -> Variant:
    return Variant(name, ending, {"codec": codec, "sound": sound, "form": form, **settings})


def sound_file(name: str, ending: str, sound: str, rate: int = 44_100) -> Variant:
    return Variant(name, ending, {"sound": sound, "sound_rate": rate}, pictures=False)


VARIANTS: Sequence[Variant] = (
    Variant("mp4 H.264 AAC"),
    video("mov H.264 ALAC", "mov", "libx264", "alac"), video("mkv H.265 FLAC", "mkv", "libx265", "flac"),
    video("mkv AV1 Opus", "mkv", "libsvtav1", "libopus"), video("webm VP9 Opus", "webm", "libvpx-vp9", "libopus"),
    video("webm VP8 Vorbis", "webm", "libvpx", "vorbis"), video("avi MPEG-4 MP3", "avi", "mpeg4", "libmp3lame"),
    video("ts H.264 AC-3", "ts", "libx264", "ac3"), video("mpg MPEG-2 MP2", "mpg", "mpeg2video", "mp2"),
    video("flv H.264 AAC", "flv", "libx264", "aac", sound_rate=44_100),
    video("wmv WMV2 WMA", "wmv", "wmv2", "wmav2", sound_rate=44_100),
    video("mov ProRes PCM", "mov", "prores_ks", "pcm_s16le", "yuv422p10le"),
    video("mov Motion JPEG 8-bit PCM", "mov", "mjpeg", "pcm_u8", "yuvj420p"),
    video("nut FFV1 float PCM", "nut", "ffv1", "pcm_f32le"),
    video("mp4 10 bit", "mp4", "libx265", "aac", "yuv420p10le"),
    video("mp4 4:4:4", "mp4", "libx264", "aac", "yuv444p"), video("mp4 grey", "mp4", "libx264", "aac", "gray"),
    *(Variant(f"{rate:g} pictures a second", rate=rate) for rate in (5, 8, 10, 15, 23.976, 29.97, 50, 60)),
    Variant("8 kHz mono", settings={"sound_rate": 8000, "layout": "mono"}, hear=mono),
    Variant("22.05 kHz mono", settings={"sound_rate": 22_050, "layout": "mono"}, hear=mono),
    Variant("96 kHz", settings={"sound_rate": 96_000}),
    Variant("5.1", settings={"layout": "5.1"}, hear=around),
    Variant("one silent channel", hear=lambda wave: np.stack([wave, 0 * wave])),
    Variant("channels that cancel", hear=lambda wave: np.stack([wave, -wave])),
    Variant("quiet, 30 dB less", hear=lambda wave: np.stack([wave, wave]) / 31.6),
    Variant("clipped, 20 dB more", hear=lambda wave: np.clip(10 * np.stack([wave, wave]), -1, 1)),
    *(Variant(f"turned by {angle}", settings={"rotation": -angle}, look=lambda x, turns=angle // 90: np.rot90(x, turns))
      for angle in (90, 180, 270)),
    Variant("mirrored", look=lambda picture: picture[:, ::-1]),
    Variant("oblong pixels", settings={"oblong": Fraction(2)}, look=lambda picture: picture[:, ::2]),
    Variant("tilted by 15 degrees", look=tilted(15)), Variant("dark", look=lambda picture: picture // 3),
    Variant("160x120", look=scaled(120)), Variant("720p", look=scaled(720)), Variant("1080p", look=scaled(1080)),
    Variant("portrait phone", look=on_canvas(1280, 720, 2)), Variant("far, 1080p", look=on_canvas(1080, 1920, 1.5)),
    Variant("farther, 1080p", look=on_canvas(1080, 1920, 1)),
    Variant("sound 1 s late", "mkv", {"sound_start": 1.0}), Variant("pictures 1 s late", "mkv", late=1.0),
    Variant("ts appended to itself", "ts", repeats=2), Variant("mpg appended to itself", "mpg",
        {"codec": "mpeg2video", "sound": "mp2"}, repeats=2),
    sound_file("wav", "wav", "pcm_s16le"), sound_file("wav 24 bit 96 kHz", "wav", "pcm_s24le", 96_000),
    sound_file("wav 8 bit 8 kHz", "wav", "pcm_u8", 8000), sound_file("mp3", "mp3", "libmp3lame"),
    sound_file("m4a", "m4a", "aac"), sound_file("flac", "flac", "flac"), sound_file("ogg", "ogg", "vorbis"),
    sound_file("opus", "opus", "libopus", 48_000), sound_file("aiff", "aiff", "pcm_s16be"),
    sound_file("wma", "wma", "wmav2"),
)  # fmt: skip
