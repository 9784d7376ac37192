"""Adds noise to speech at a given signal-to-noise ratio, reproducibly.

Noise is other clips of the split that talk at once (`babble_of`) or a part of a recording (`Recordings`).
"""

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from viavsp_jax.data import media
from viavsp_jax.data.ids import id_text
from viavsp_jax.runtime.errors import InputError

INT16_MAX = np.iinfo(np.int16).max
BABBLE = "babble"  # the name of that kind of noise; all others are folders of recordings
NUM_TALKERS = 8  # heard at once in babble, where nothing else is said
_TRIES = 10  # to draw a part of a recording with sound


def rng_for(record_id: str, seed: int, epoch: int = 0) -> np.random.Generator:
    """The random generator of one record in one epoch: the same on every machine and in any order of processing."""
    digest = hashlib.sha256(record_id.encode()).digest()
    key = [seed, int.from_bytes(digest[:8], "little")]
    return np.random.default_rng([*key, epoch] if epoch else key)


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


def draw_clips(rng: np.random.Generator, count: int, talkers: int = NUM_TALKERS) -> list[int]:
    """Which of `count` clips may talk in babble: one more than will, since the clip itself may be among them.

    Fewer than eight talkers have eight to choose from: one that cannot be heard is not to leave the clip without any.
    """
    return rng.choice(count, size=min(max(talkers, NUM_TALKERS) + 1, count), replace=False).tolist()


def babble_of(
    clips: Sequence[Mapping[str, Any]],
    record_id: str,
    length: int,
    rng: np.random.Generator,
    talkers: int = NUM_TALKERS,
) -> np.ndarray:
    """Babble of other clips of a split: int16 [length].

    Args:
      clips: with `id` and `audio` int16 [n], as a media split has them (records.open_split).
      record_id: the clip that the noise is for, which does not hear itself.
      length: in samples.
      rng: see `rng_for`.
      talkers: how many of them talk at once, if there are so many.

    Clips without sound are passed over. Raises InputError if none of those that were drawn can be heard.
    """
    drawn = draw_clips(rng, len(clips), talkers)

    def others() -> Iterator[Mapping[str, Any]]:
        """Read when they are asked for: most of a few talkers' reserve never is."""
        found = (clip for clip in map(clips.__getitem__, drawn) if clip["id"] != record_id)
        return itertools.islice(found, max(talkers, NUM_TALKERS))

    heard = list(itertools.islice((clip["audio"] for clip in others() if clip["audio"].any()), talkers))
    if not heard:
        tried = [clip["id"] for clip in others()]
        raise InputError(f"babble for {record_id!r} needs another clip with sound, tried {tried}")
    return babble(heard, length, rng)


def draw_part(
    recordings: Sequence[np.ndarray], length: int, rng: np.random.Generator, where: str | os.PathLike
) -> np.ndarray:
    """A part of one of some recordings, int16 [n] each, from a random place on, repeated as needed: int16 [length].

    Raises InputError, which names `where` they are, if one part after the other is silent.
    """
    for _ in range(_TRIES):
        samples = recordings[rng.integers(len(recordings))]
        start = rng.integers(len(samples))
        part = samples.take(np.arange(start, start + length), mode="wrap")
        if part.any():
            return part
    raise InputError(f"{where}: {_TRIES} parts in a row are silent, expected recordings of noise")


class Recordings(Sequence):
    """Noise recordings: the 16 kHz mono wav files of a folder and of the folders below it, int16 [n] each."""

    def __init__(self, folder: str | Path):
        """Raises InputError if there is none, or one of another format."""
        self.folder, self.name = os.fspath(folder), id_text(Path(folder).resolve().name)
        # In an order that does not depend on where the folder lies, nor on the Unicode form of names there.
        found = sorted(Path(folder).rglob("*.wav"), key=lambda path: (list(map(id_text, path.parts)), path))
        self.paths = [str(path) for path in found]
        if not self.paths:
            raise InputError(f"{self.folder}: no .wav file there, expected a folder with recordings of noise")
        for path in self.paths:
            media.check_audio(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return media.read_audio(self.paths[index])


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _to_int16(samples: np.ndarray) -> np.ndarray:
    """Rounds to int16, scaling down as a whole where the peak would not fit."""
    peak = np.abs(samples).max(initial=0)
    return np.rint(samples * min(1, INT16_MAX / peak) if peak else samples).astype(np.int16)
