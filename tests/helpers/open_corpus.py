"""The recorded archives of ViCocktail's layout, taken apart and put together again in other ways."""

import io
import tarfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from places import GOLDEN_OPEN

from viavsp_jax.prepare.recordings.clip import read_clip
from viavsp_jax.prepare.recordings.mouth_video import write_video

ARCHIVES = GOLDEN_OPEN / "vicocktail/data"
TRAIN, TEST = ARCHIVES / "avvn-train-000000.tar", ARCHIVES / "avvn-test-000000.tar"
NOISY = ARCHIVES / "avvn-test_snr_0_interferer_1-000000.tar"

Sample = dict[str, bytes]  # by what follows the first dot


def read_archive(path: Path) -> dict[str, Sample]:
    """The samples of an archive, by key."""
    samples: dict[str, Sample] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            key, _, suffix = member.name.partition(".")
            samples.setdefault(key, {})[suffix] = archive.extractfile(member).read()
    return samples


def write_archive(path: Path, samples: Mapping[str, Sample]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, sample in samples.items():
            for suffix, content in sample.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def few(path: Path, count: int) -> dict[str, Sample]:
    """The first samples of an archive."""
    return dict(list(read_archive(path).items())[:count])


def as_files(folder: Path, samples: Mapping[str, Sample]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes the video of each sample as <key>.mp4; returns frames uint8[T, 96, 96] and sound int16[n] by key."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for key, sample in samples.items():
        path = folder / f"{key}.mp4"
        path.write_bytes(sample["video"])
        read = read_clip(str(path), str(path))
        found[key] = read.frames, read.samples
    return found


def encoded(frames: np.ndarray, samples: np.ndarray) -> bytes:
    """An mp4 file of mouth crops and speech."""
    file = io.BytesIO()
    write_video(file, frames, samples)
    return file.getvalue()


def encoded_as(
    frames: np.ndarray,
    samples: np.ndarray,
    fps: int = 25,
    rate: int = 16_000,
    form: str = "mp4",
    codec: str = "libx264",
) -> bytes:
    """A file of grey pictures uint8[T, H, W] at any rate and sound int16[n, C] at any other."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "10"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "yuv420p"
        sound = container.add_stream("aac", rate=rate, layout={1: "mono", 2: "stereo"}[samples.shape[1]])
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "gray")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
        values, length = (samples.T / 2**15).astype(np.float32), sound.codec_context.frame_size
        for start in range(0, values.shape[1], length):
            part = np.ascontiguousarray(values[:, start : start + length])
            frame = av.AudioFrame.from_ndarray(part, "fltp", sound.layout.name)
            frame.sample_rate, frame.pts = rate, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return file.getvalue()
