"""Masks on what is heard, as in SpecAugment (arXiv:1904.08779), on filterbank values of mean 0.

Letters: T frames of 40 ms, each of 4 · 26 values: four times 26 bands.
"""

import dataclasses

import numpy as np

from viavsp_jax.data.features import NUM_FILTERS, STACKED_FRAMES


@dataclasses.dataclass(frozen=True)
class Masks:
    """How many and how large; the fields of `config.data.augment.mask`."""

    times: int
    frames: int  # of one, at most
    ranges: int
    bands: int  # of one, at most


def masked(audio: np.ndarray, masks: Masks, rng: np.random.Generator) -> np.ndarray:
    """float32[T, 104] with 0 in `masks.times` stretches of frames and `masks.ranges` ranges of bands.

    Sizes are drawn from 0 to the largest, places from all where a mask lies inside.
    """
    values = audio.copy().reshape(len(audio), STACKED_FRAMES, NUM_FILTERS)
    for _ in range(masks.times):
        values[stretch(len(audio), masks.frames, rng)] = 0
    for _ in range(masks.ranges):
        values[:, :, stretch(NUM_FILTERS, masks.bands, rng)] = 0
    return values.reshape(audio.shape)


def stretch(length: int, most: int, rng: np.random.Generator) -> slice:
    """A part of so many, of a size from 0 to the largest, anywhere inside."""
    size = rng.integers(min(most, length) + 1)
    start = rng.integers(length - size + 1)
    return slice(start, start + size)
