"""Clips with other ends: what is drawn, what is left of the clip, and what is put around it."""

import numpy as np
import pytest

from viavsp_jax.data.edges import Edges

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 255, (30, 96, 96)).astype(np.uint8)
SAMPLES = RNG.integers(2000, 4000, 30 * 640).astype(np.int16)  # louder than any room, at every sample


def place(samples):
    """The first and the last frame that hold speech, and how loud the pauses are."""
    loud = np.flatnonzero(samples > 1000)
    pauses = np.concatenate([samples[: loud[0]], samples[loud[-1] + 1 :]])
    return loud[0] // 640, loud[-1] // 640, np.sqrt(np.mean(np.square(pauses, dtype=float))) if len(pauses) else 0.0


def test_ends_lie_anywhere_between_a_cut_and_a_pause():
    firsts, lasts, levels, changed = set(), set(), [], 0
    for number in range(400):
        frames, samples = Edges(10, 0).move(f"clip{number}", FRAMES, SAMPLES)
        assert len(samples) == 640 * len(frames)
        start, end, level = place(samples)
        cut = int(np.flatnonzero((FRAMES == frames[start]).all((1, 2)))[0])
        kept = frames[start : end + 1]
        np.testing.assert_array_equal(kept, FRAMES[cut : cut + len(kept)])
        assert (frames[:start] == kept[0]).all() and (frames[end + 1 :] == kept[-1]).all()
        said = samples[640 * start : 640 * (end + 1)].astype(int) - SAMPLES[640 * cut : 640 * (cut + len(kept))]
        changed += bool(said.any())
        assert np.abs(said).max() < 600
        firsts.add(start - cut)
        lasts.add(len(frames) - 1 - end - (30 - cut - len(kept)))
        levels.append(level)
    assert firsts == lasts == set(range(-3, 11))
    levels = np.array([level for level in levels if level is not None])
    assert 0.2 < (levels == 0).mean() < 0.5 and 60 < levels.max() < 110
    assert 0.25 < changed / 400 < 0.42


def test_what_is_drawn_follows_from_id_and_seed():
    first, again, other = (Edges(10, seed).move("a", FRAMES, SAMPLES) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert len(first[1]) != len(other[1]) or not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("count", [1, 5, 11])
def test_short_clips_are_hardly_cut(count):
    for number in range(50):
        frames, _ = Edges(0, number).move("a", FRAMES[:count], SAMPLES[: 640 * count])
        assert min(count, 10) <= len(frames) <= count


def test_sound_of_another_length_than_the_pictures():
    for samples in (SAMPLES[:-5000], np.concatenate([SAMPLES, SAMPLES])):
        frames, found = Edges(10, 0).move("a", FRAMES, samples)
        assert len(found) == 640 * len(frames)
