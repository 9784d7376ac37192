"""Adds noise to speech at a given signal-to-noise ratio, reproducibly."""

import hashlib
from collections.abc import Sequence

import numpy as np

from viavsp_jax.errors import InputError

INT16_MAX = np.iinfo(np.int16).max


def rng_for(record_id: str, seed: int) -> np.random.Generator:
    """The random generator of one record: the same on every machine and in any order of processing."""
    digest = hashlib.sha256(record_id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def mix(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Adds noise to speech, both int16, so that 10 log10(speech power / noise power) = snr_db.

    The noise is repeated or cut to the length of the speech; powers are means over that length. A sum that
    would clip is scaled down as a whole, which keeps the ratio. Silent speech stays silent.

    Returns int16 of the length of the speech. Raises InputError if the noise is empty or silent there.
    """
    if not len(noise):
        raise InputError("cannot add noise: the noise has no samples")
    noise = np.resize(noise, len(speech)).astype(np.float64)
    noise_rms = _rms(noise)
    if not noise_rms:
        raise InputError(f"cannot add noise at {snr_db} dB: the noise is silent over {len(speech)} samples")
    gain = _rms(speech) / noise_rms * 10 ** (-snr_db / 20)
    return _to_int16(speech + gain * noise)


def babble(clips: Sequence[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """Several people talking at once: int16 [length].

    Each clip (int16) starts at a random offset, is repeated as needed, and is brought to the clips' mean
    loudness before they are added. Raises InputError if there is no clip, or one is empty or silent.
    """
    levels = np.array([_rms(clip) if len(clip) else 0.0 for clip in clips])
    if not len(clips) or not levels.all():
        raise InputError(
            f"cannot make babble: expected clips with sound, got {len(clips)} clips, "
            f"empty or silent: {np.flatnonzero(levels == 0).tolist()}"
        )
    total = np.zeros(length)
    for clip, level in zip(clips, levels, strict=True):
        start = rng.integers(len(clip))
        total += np.resize(np.roll(clip, -start), length) * (levels.mean() / level)
    return _to_int16(total)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _to_int16(samples: np.ndarray) -> np.ndarray:
    """Rounds to int16, scaling down as a whole where the peak would not fit."""
    peak = np.abs(samples).max(initial=0)
    return np.rint(samples * min(1, INT16_MAX / peak) if peak else samples).astype(np.int16)
