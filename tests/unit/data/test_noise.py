"""The signal-to-noise ratio is measured from the parts of the mixture, not from the code that made it."""

import numpy as np
import pytest

from viavsp_jax.data.noise import babble, babble_of, mix, rng_for
from viavsp_jax.runtime.errors import InputError


def tone(length, amplitude, seed):
    return (np.random.default_rng(seed).standard_normal(length) * amplitude).astype(np.int16)


def parts(mixture, *sources):
    """Least-squares weight of each source in the mixture, and the largest sample they leave unexplained."""
    matrix = np.stack(sources, 1).astype(np.float64)
    weights = np.linalg.lstsq(matrix, mixture.astype(np.float64), rcond=None)[0]
    return weights, np.abs(matrix @ weights - mixture).max()


def power(samples):
    return np.mean(samples.astype(np.float64) ** 2)


@pytest.mark.parametrize("snr_db", [-10, -2.5, 0, 7.5, 20])
@pytest.mark.parametrize("noise_length", [313, 4000, 9000])
def test_mixture_has_the_ratio_asked_for(snr_db, noise_length):
    speech, noise = tone(4000, 900, seed=1), tone(noise_length, 4000, seed=2)
    mixture = mix(speech, noise, snr_db)
    assert mixture.dtype == np.int16 and mixture.shape == speech.shape
    used = np.tile(noise, 13)[:4000]
    (speech_weight, noise_weight), residual = parts(mixture, speech, used)
    assert residual < 0.6  # rounding to integers only
    assert speech_weight == pytest.approx(1, abs=1e-3)
    measured = 10 * np.log10(power(speech_weight * speech) / power(noise_weight * used))
    assert measured == pytest.approx(snr_db, abs=0.01)


def test_mixture_that_would_clip_is_scaled_down_with_its_ratio_kept():
    speech, noise = tone(4000, 7000, seed=3), tone(4000, 500, seed=4)
    mixture = mix(speech, noise, snr_db=-10)
    (speech_weight, noise_weight), residual = parts(mixture, speech, noise)
    assert np.abs(mixture.astype(int)).max() == 32767
    assert speech_weight < 0.9 and residual < 0.6
    measured = 10 * np.log10(power(speech_weight * speech) / power(noise_weight * noise))
    assert measured == pytest.approx(-10, abs=0.01)


def test_full_scale_negative_sample_does_not_wrap():
    speech = np.array([-32768, 32767, -32768, 32767], np.int16)
    mixture = mix(speech, speech, snr_db=0)
    assert (np.sign(mixture) == np.sign(speech)).all() and np.abs(mixture.astype(int)).min() > 32000


def test_silence():
    silent, noise = np.zeros(100, np.int16), tone(100, 500, seed=5)
    assert not mix(silent, noise, 0).any()
    with pytest.raises(InputError, match="the noise is silent over 100 samples"):
        mix(noise, silent, 0)
    with pytest.raises(InputError, match="the noise has no samples"):
        mix(noise, silent[:0], 0)


def test_babble_holds_every_clip_at_equal_loudness():
    lengths, length = [800, 1500, 2300, 700, 1100, 900], 2000
    clips = [tone(n, 200 * (i + 1), seed=10 + i) for i, n in enumerate(lengths)]
    noise = babble(clips, length, rng_for("clip-7", seed=0))
    assert noise.dtype == np.int16 and noise.shape == (length,)
    offsets = rng_for("clip-7", seed=0)
    shifted = []
    for clip in clips:
        start = offsets.integers(len(clip))
        shifted.append(np.concatenate([clip[start:], np.tile(clip, 3)])[:length])
    weights, residual = parts(noise, *shifted)
    assert residual < 0.6
    loudness = weights * np.sqrt([power(clip) for clip in clips])
    np.testing.assert_allclose(loudness, loudness.mean(), rtol=1e-3)
    assert loudness.mean() == pytest.approx(np.mean([np.sqrt(power(clip)) for clip in clips]), rel=1e-3)


def test_babble_of_loud_clips_does_not_clip():
    clips = [tone(1000, 8000, seed=20 + i) for i in range(6)]
    noise = babble(clips, 1000, np.random.default_rng(0)).astype(int)
    assert np.abs(noise).max() == 32767 and (np.abs(noise) == 32767).sum() == 1


def test_babble_refuses_silent_and_missing_clips():
    rng = np.random.default_rng(0)
    clips = [tone(100, 500, seed=1), np.zeros(50, np.int16), np.zeros(0, np.int16)]
    with pytest.raises(InputError, match=r"got 3 clips, empty or silent: \[1, 2\]"):
        babble(clips, 100, rng)
    with pytest.raises(InputError, match="got 0 clips"):
        babble([], 100, rng)


@pytest.mark.parametrize("talkers", [1, 2, 8, 11])
def test_so_many_others_talk(talkers):
    """Of those that are drawn the first that can be heard; no fewer because some are silent, as long as others wait."""
    clips = [{"id": str(i), "audio": tone(500 + i, 300, seed=i) * np.int16(i % 4 > 0)} for i in range(30)]
    for number in range(12):
        rng = rng_for(str(number), seed=0)
        most = max(8, talkers)
        drawn = [clips[i] for i in rng.choice(30, size=most + 1, replace=False) if i != number][:most]
        heard = [clip["audio"] for clip in drawn if clip["audio"].any()][:talkers]
        assert len(heard) == talkers or talkers > 2
        expected = babble(heard, 700, rng)
        found = [babble_of(clips, str(number), 700, rng_for(str(number), seed=0), talkers)]
        if talkers == 8:  # as shards of earlier versions have it
            found.append(babble_of(clips, str(number), 700, rng_for(str(number), seed=0)))
        for one in found:
            np.testing.assert_array_equal(one, expected)


def test_generator_of_a_record_is_stable_and_its_own():
    def draw(record_id, seed, epoch=0):
        return rng_for(record_id, seed, epoch).integers(2**32)

    # Recorded once: shards made on different days and machines must hold the same noise.
    assert draw("vi-0001", 0) == 3739635548
    assert draw("vi-0001", 0) == draw("vi-0001", 0)
    assert draw("vi-0001", 2**70) == 1110654646
    others = [draw("vi-0002", 0), draw("vi-0001", 1), draw("vi-0001", 0, 1), draw("vi-0001", 0, 2)]
    assert len({draw("vi-0001", 0), *others}) == 5
