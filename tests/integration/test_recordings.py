"""A speaking face in forms that people have: all of its pictures and of its sound are read, and the mouth is found.

A reduced set of tests/stress/recordings.py, which reads all of them and writes down their words.
"""

import numpy as np
import pytest
from recording_variants import VARIANTS, faces, sentences

from viavsp_jax.prepare.recordings.mouth import mouth_crops
from viavsp_jax.prepare.recordings.recording import read_recording

NAMES = (
    "mov H.264 ALAC", "webm VP9 Opus", "avi MPEG-4 MP3", "wmv WMV2 WMA", "mp4 10 bit", "8 pictures a second",
    "60 pictures a second", "5.1", "channels that cancel", "turned by 90", "mirrored", "oblong pixels", "160x120",
    "pictures 1 s late", "ts appended to itself",
)  # fmt: skip


@pytest.fixture(scope="module")
def two_seconds():
    _, samples = sentences()
    return faces(50), samples[: 2 * 16_000]


def likeness(found, written):
    """The greatest correlation of two int16[n] that may begin at different times."""
    length = max(len(found), len(written))
    product = np.fft.rfft(found.astype(float), 2 * length) * np.conj(np.fft.rfft(written.astype(float), 2 * length))
    return np.abs(np.fft.irfft(product)).max() / np.linalg.norm(found.astype(float)) / np.linalg.norm(written)


@pytest.mark.parametrize("variant", [one for one in VARIANTS if one.name in NAMES], ids=lambda one: one.name)
def test_all_of_it_is_read(tmp_path, two_seconds, variant):
    pictures, samples = two_seconds
    recording = read_recording(variant.write(tmp_path, pictures, samples))
    late = round(25 * variant.late)
    assert 0 <= len(recording.samples) - variant.repeats * len(samples) < variant.repeats * 1100  # a coder's padding
    for piece in np.array_split(recording.samples, variant.repeats):
        assert likeness(piece, samples) > 0.95
    track = mouth_crops(recording)
    assert len(track.crops) - variant.repeats * 50 - late in (0, 1)
    assert track.found.mean() == 1


def test_no_name_is_missing():
    assert {one.name for one in VARIANTS} >= set(NAMES)
