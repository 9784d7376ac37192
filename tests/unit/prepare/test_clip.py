"""Sound of other forms than the corpus's own becomes 16 kHz mono, whatever file it is in."""

import wave
from typing import NamedTuple

import numpy as np
import pytest
from etils import epath
from open_corpus import encoded_as

from viavsp_jax.prepare import measure
from viavsp_jax.prepare.corpus.entries import Sizes
from viavsp_jax.prepare.recordings.clip import read_clip, read_speech
from viavsp_jax.runtime.errors import InputError

SECONDS, TONE = 1, 440.0


@pytest.mark.parametrize(("rate", "channels", "width"), [(8000, 1, 2), (16_000, 2, 2), (48_000, 2, 2), (16_000, 1, 1)])
def test_wav_files_of_other_forms(tmp_path, rate, channels, width):
    values = np.sin(2 * np.pi * TONE * np.arange(SECONDS * rate) / rate)
    samples = (values * 100 + 128).astype(np.uint8) if width == 1 else (values * 10_000).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.repeat(samples, channels).tobytes())
    found = read_speech(str(tmp_path / "a.wav"))
    assert found.dtype == np.int16 and abs(len(found) - SECONDS * 16_000) < 64
    spectrum = np.abs(np.fft.rfft(found[:16_000].astype(float), 16_000))
    assert np.argmax(spectrum) == TONE
    loudness = 10_000 if width == 2 else 100 * 256
    assert np.sqrt(np.square(found[2000:14_000].astype(float)).mean()) == pytest.approx(loudness / 2**0.5, rel=0.03)


@pytest.mark.parametrize(
    ("form", "codec"),
    [("mp4", "libx264"), ("mov", "libx264"), ("matroska", "libx264"), ("mpegts", "libx264"), ("flv", "flv1"),
     ("avi", "mpeg4")],
)  # fmt: skip
def test_containers(tmp_path, form, codec):
    """What is seen and heard at the same time stays together, whatever time the file begins at."""
    frames, samples = np.zeros((50, 96, 96), np.uint8), np.zeros((32_000, 1), np.int16)
    frames[30:], samples[30 * 640 :, 0] = 255, 10_000 * np.sin(np.arange(20 * 640) / 5)
    path = tmp_path / "a"
    path.write_bytes(encoded_as(frames, samples, form=form, codec=codec))
    clip = read_clip(str(path), str(path))
    seen = int((clip.frames.mean((1, 2)) > 128).argmax()) / 25
    heard = int((np.abs(clip.samples.astype(int)) > 3000).argmax()) / 16_000
    assert heard == pytest.approx(seen, abs=0.05) and 50 <= len(clip.frames) <= 53
    (sizes,) = measure.measure("", [_Place(str(path), str(path))], epath.Path(tmp_path / "kept"), 0)
    assert isinstance(sizes, Sizes) and abs(sizes.frames - len(clip.frames)) <= 2


def test_an_avi_that_is_cut_off(tmp_path):
    rng = np.random.default_rng(0)
    frames, samples = rng.integers(0, 255, (50, 96, 96), dtype=np.uint8), np.zeros((32_000, 1), np.int16)
    content = encoded_as(frames, samples, form="avi", codec="mpeg4")
    (tmp_path / "a.avi").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut off after"):
        read_clip(*[str(tmp_path / "a.avi")] * 2)


class _Place(NamedTuple):
    video: str
    audio: str
