"""Masks on audio features, counted."""

import numpy as np
import pytest

from viavsp_jax.data.masks import Masks, masked


def drawn(masks, frames=40, draws=300):
    rng = np.random.default_rng(0)
    return np.stack([masked(np.ones((frames, 104), np.float32), masks, rng) for _ in range(draws)]) == 0


def test_nothing_is_masked_unless_told():
    audio = np.random.default_rng(1).normal(size=(9, 104)).astype(np.float32)
    np.testing.assert_array_equal(masked(audio, Masks(0, 10, 0, 6), np.random.default_rng(0)), audio)


def test_stretches_of_frames():
    hidden = drawn(Masks(times=1, frames=10, ranges=0, bands=6))
    assert (hidden == hidden[:, :, :1]).all(), "a frame as a whole"
    sizes = hidden[:, :, 0].sum(1)
    assert {*sizes} == {*range(11)} and sizes.mean() == pytest.approx(5, abs=0.6)
    # In one piece, and anywhere.
    assert (np.diff(hidden[:, :, 0].astype(int), prepend=0, axis=1) == 1).sum(1).max() == 1
    assert hidden[:, [0, -1], 0].any(0).all()
    assert drawn(Masks(3, 10, 0, 6))[:, :, 0].sum(1).max() > 10


def test_ranges_of_bands_are_the_same_in_all_four_parts_of_all_frames():
    hidden = drawn(Masks(times=0, frames=10, ranges=1, bands=6)).reshape(-1, 40, 4, 26)
    assert (hidden == hidden[:, :1, :1]).all()
    assert {*hidden[:, 0, 0].sum(1)} == {*range(7)}


def test_a_clip_shorter_than_a_mask():
    assert drawn(Masks(1, 10, 0, 6), frames=3)[:, :, 0].sum(1).max() == 3
