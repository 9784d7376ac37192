"""Recordings that are made up."""

import numpy as np
import pytest

from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.runtime.errors import InputError

NOISE = np.random.default_rng(0).integers(-30_000, 30_000, 40_000).astype(np.int16)


def numbered(count: int) -> list[np.ndarray]:
    """Pictures that can be told from each other."""
    return [np.full((32, 48, 3), 2 * index, np.uint8) for index in range(count)]


def refused(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        recording = read_recording(path, **options)
        list(recording.frames())
    assert str(path) in str(caught.value)
    return str(caught.value)
