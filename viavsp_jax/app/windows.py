"""Cuts a recording into windows as long as the clips that a model was trained on, at pauses.

Letters: T video frames (25 a second), n audio samples (16,000 a second).
"""

import numpy as np

from viavsp_jax.data.features import SAMPLES_PER_FRAME
from viavsp_jax.prepare.recordings.sound import SILENCE

# A sound that reaches the analysis windows of a frame may lie up to so many samples behind the frame.
_OVERLAP = 240
# Each cut costs as much as one in this share of the range from the quietest to the loudest frame.
_COST = 0.1


def motion(crops: np.ndarray) -> np.ndarray:
    """How much each frame differs from the one before: uint8[T, 96, 96] → float64[T], in grey levels."""
    steps = [
        float(np.abs(after.astype(np.int16) - before).mean()) for before, after in zip(crops, crops[1:], strict=False)
    ]
    return np.array([0.0, *steps])


def is_silent(samples: np.ndarray) -> bool:
    """Whether there is nothing to hear in int16[n]."""
    return not len(samples) or float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) < SILENCE


def cut(activity: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """Windows [start, end) that cover all frames, none longer than `longest`, cut where there is least activity.

    Of all ways to cut into windows of a third of `longest` at least, it takes the one whose cuts lie in the quietest
    frames together, and each further cut has a price.

    Args:
      activity: float64[T], loudness or motion of each frame.
      longest: frames of a window, at least 3.
    """
    total, shortest = len(activity), max(1, longest // 3)
    if total <= longest:
        return [(0, total)]
    spread = np.ptp(activity) or 1.0
    quiet = (activity - activity.min()) / spread
    # A cut lies between two frames.
    price = np.append(np.append(0.0, (quiet[1:] + quiet[:-1]) / 2 + _COST), 0.0)
    best, before = np.full(total + 1, np.inf), np.zeros(total + 1, int)
    best[0] = 0.0
    for end in range(shortest, total + 1):
        starts = np.arange(max(0, end - longest), end - shortest + 1)
        chosen = starts[np.argmin(best[starts])]
        best[end], before[end] = best[chosen] + price[end], chosen
    windows, end = [], total
    while end:
        windows.append((int(before[end]), end))
        end = int(before[end])
    return windows[::-1]


def samples_of(samples: np.ndarray, start: int, end: int) -> np.ndarray:
    """What is heard in the frames [start, end): int16[n] → int16[m]; nothing where the sound has ended."""
    return samples[start * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME + _OVERLAP]
