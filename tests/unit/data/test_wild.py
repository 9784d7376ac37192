"""Clips as people record them: their ends, the noise of the room, and what telephones and microphones do."""

import numpy as np
import pytest

from viavsp_jax.data.wild import Wild

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 255, (30, 96, 96)).astype(np.uint8)
SAMPLES = RNG.integers(2000, 4000, 30 * 640).astype(np.int16)  # louder than any room, at every sample


def change(number):
    """A clip that is changed; where its speech starts and ends in it, and the frame of the clip that it starts with."""
    frames, samples = Wild(10, 0).change(f"clip{number}", FRAMES, SAMPLES)
    assert len(samples) == 640 * len(frames)
    loud = np.flatnonzero(samples > 0.3 * samples.max())
    start, end = loud[0] // 640, loud[-1] // 640 + 1
    return frames, samples, start, end, int(np.flatnonzero((FRAMES == frames[start]).all((1, 2)))[0])


def power_above(samples, hertz):
    """Share of the power, without its mean."""
    power = np.abs(np.fft.rfft(samples - samples.mean())) ** 2
    return power[round(hertz / 8000 * len(power)) :].sum() / power.sum()


def test_ends_lie_anywhere_between_a_cut_and_a_pause():
    firsts, lasts = set(), set()
    for number in range(400):
        frames, _, start, end, cut = change(number)
        kept = frames[start:end]
        np.testing.assert_array_equal(kept, FRAMES[cut : cut + len(kept)])
        assert (frames[:start] == kept[0]).all() and (frames[end:] == kept[-1]).all()
        firsts.add(start - cut)
        lasts.add(len(frames) - end - (30 - cut - len(kept)))
    assert firsts == lasts == set(range(-3, 11))


def test_rooms_telephones_and_microphones():
    kinds, gains, levels, noisy = [], [], [], []
    for number in range(400):
        _, samples, start, end, cut = change(number)
        said = samples[640 * start : 640 * end].astype(float)
        meant = SAMPLES[640 * cut : 640 * (cut + end - start)].astype(float)
        gain = 20 * np.log10(np.median(said) / np.median(meant))
        if power_above(said, 4400) < 0.1:  # of white noise it would be 0.45
            kinds.append("telephone")
            assert abs(gain) < 0.2
        elif abs(gain) > 0.2:
            kinds.append("gain")
            gains.append(gain)
        else:
            kinds.append("as it is")
            pauses = np.concatenate([samples[: 640 * start], samples[640 * end :]])
            levels.append(np.sqrt(np.mean(np.square(pauses, dtype=float))) if len(pauses) else 0.0)
            noisy.append(np.abs(said - meant).max() > 0)
            assert np.abs(said - meant).max() < 600
    assert 0.2 < kinds.count("telephone") / 400 < 0.3 and 0.2 < kinds.count("gain") / 400 < 0.3
    assert -40.5 < min(gains) < -38 and 17 < max(gains) < 20.1
    assert 0.2 < np.mean(np.array(levels) == 0) < 0.5 and 60 < max(levels) < 110
    assert 0.25 < np.mean(noisy) < 0.42


def test_what_is_drawn_follows_from_id_and_seed():
    first, again, other = (Wild(10, seed).change("a", FRAMES, SAMPLES) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert len(first[1]) != len(other[1]) or not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("count", [1, 5, 11])
def test_short_clips_are_hardly_cut(count):
    for number in range(50):
        frames, _ = Wild(0, number).change("a", FRAMES[:count], SAMPLES[: 640 * count])
        assert min(count, 10) <= len(frames) <= count


def test_sound_of_another_length_than_the_pictures():
    for samples in (SAMPLES[:-5000], np.concatenate([SAMPLES, SAMPLES])):
        frames, found = Wild(10, 0).change("a", FRAMES, samples)
        assert len(found) == 640 * len(frames)
