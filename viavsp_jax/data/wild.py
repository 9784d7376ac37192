"""Clips as recordings in the wild have them: cut early or late, in a noisy room, by a telephone or a bad microphone.

A model that has only seen clips cut close to their speech invents words where there are pauses, and one that has only
heard studio sound loses every third word of a telephone call.

Letters: T video frames (25 a second), H, W height and width, n audio samples (16,000 a second).
"""

import dataclasses

import numpy as np

from viavsp_jax.data.features import SAMPLES_PER_FRAME
from viavsp_jax.data.noise import rng_for

_MOST_CUT = 3  # frames that a clip loses at an end
_LEAST_LEFT = 10  # frames of a clip that is cut
_LOUDEST = 100.0  # root mean square of a room's noise, of int16: 50 dB below full scale
_SILENT, _EVERYWHERE = 1 / 3, 2 / 3  # digital silence; noise in the pauses alone; the others: in the speech, too
_TELEPHONE, _GAIN = 1 / 4, 1 / 2  # sampled at 8 kHz; too quiet or too loud; the others: as they are
_DECIBELS = -40.0, 20.0  # of gain; what is too loud is clipped


@dataclasses.dataclass(frozen=True)
class Wild:
    """How a split's clips are changed."""

    most: int  # frames of pause at an end
    seed: int

    def change(self, clip_id: str, frames: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A clip with other ends and another sound: uint8[T, H, W] and int16[n] → the same of other lengths.

        Each end is drawn by itself, from three frames less to `most` more. In a pause the picture stands still; the
        sound is silence or faint noise. What is drawn follows from the clip's id and the seed alone.
        """
        rng = rng_for(clip_id, self.seed)
        cut = min(_MOST_CUT, max(0, len(frames) - _LEAST_LEFT) // 2)
        before, after = (int(x) for x in rng.integers(-cut, self.most + 1, 2))
        samples = np.pad(samples, (0, max(0, len(frames) * SAMPLES_PER_FRAME - len(samples))))
        samples = samples[: len(frames) * SAMPLES_PER_FRAME]
        first, last = max(0, -before), len(frames) - max(0, -after)
        pauses = max(0, before), max(0, after)
        frames = np.pad(frames[first:last], (pauses, (0, 0), (0, 0)), mode="edge")
        said = samples[first * SAMPLES_PER_FRAME : last * SAMPLES_PER_FRAME]
        padded = np.pad(said, [SAMPLES_PER_FRAME * pause for pause in pauses]).astype(np.float64)
        in_room = _with_room(padded, len(said), pauses[0] * SAMPLES_PER_FRAME, rng)
        limits = np.iinfo(np.int16)
        return frames, np.rint(_recorded(in_room, rng)).clip(limits.min, limits.max).astype(np.int16)


def _with_room(samples: np.ndarray, length: int, start: int, rng: np.random.Generator) -> np.ndarray:
    """Noise is added to float64[n] with speech of some length from `start` on."""
    kind, level = rng.random(), _LOUDEST ** rng.random()
    noise = rng.normal(0, level, len(samples)) * (kind >= _SILENT)
    if kind < _EVERYWHERE:
        noise[start : start + length] = 0
    return samples + noise


def _recorded(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a telephone or a microphone makes of float64[n]."""
    kind, gain = rng.random(), rng.uniform(*_DECIBELS)
    if kind < _TELEPHONE:
        from scipy.signal import resample_poly  # half a second of each process that reads clips, needed by few

        return resample_poly(resample_poly(samples, 1, 2), 2, 1)[: len(samples)]
    return samples * 10 ** (gain / 20) if kind < _GAIN else samples
