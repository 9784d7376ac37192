"""The sound of a recording as speech: 16 kHz, mono, 16 bit, gaps filled with silence.

Channels are mixed. Where they cancel each other, as those of a cable or microphone with its poles swapped do, the mix
is all but silent: there one of them is taken alone.

Letters: n audio samples, C channels.
"""

from collections.abc import Callable, Iterable
from fractions import Fraction

import av
import numpy as np

from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.runtime.errors import InputError

SILENCE = 2.0  # root mean square of int16 samples, about -84 dB of full scale
LONGEST_GAP = 3600  # seconds without a sound, all in all; timestamps that leap further are wrong
# A track whose timestamps differ by less from the sum of its samples goes on without a break; containers round them.
_TOLERANCE = Fraction(1, 10)
_BLOCK = SAMPLE_RATE // 4  # samples for which it is decided how they are mixed
# Share of a channel's power that is left in a mix of channels that cancel each other. It is a quarter for one of two,
# a fiftieth for one of the rear of 5.1.
_CANCELLED = 0.02


def levels(samples: np.ndarray) -> np.ndarray:
    """Root mean square of each 1/25 s, int16[n] -> float64[ceil(25 n / 16000)]; what is missing of the last is zero."""
    length = SAMPLE_RATE // FRAME_RATE
    whole = np.pad(samples.astype(np.float64), (0, -len(samples) % length)).reshape(-1, length)
    return np.sqrt(np.square(whole).mean(1))


def is_silent(samples: np.ndarray) -> bool:
    """Whether there is nothing to hear anywhere in int16[n]."""
    return levels(samples).max(initial=0) < SILENCE


def read_sound(
    path: str, frames: Iterable[tuple[av.AudioFrame, Fraction, int]], check_length: Callable[[float], None]
) -> tuple[Fraction | None, np.ndarray]:
    """Makes speech of the frames of a track.

    Args:
      path: is named in errors.
      frames: with the second at which each begins, and the number of the file's piece that it is from.
      check_length: is given how many seconds there are so far.

    Returns the time of the first sample, None if there is none, and int16[n].

    Raises InputError if the sound cannot be resampled, or its times leap.
    """
    start, samples, silence = None, bytearray(), 0
    mixer, setup, run_start, run_length = None, None, 0, 0
    for frame, time, piece in frames:
        start = time if start is None else start
        before, setup = setup, (frame.format.name, frame.layout.name, frame.sample_rate, piece)
        if setup != before or abs(time - run_start - run_length) > _TOLERANCE:
            samples += mixer.rest() if mixer else b""
            gap = round((time - start) * SAMPLE_RATE) - len(samples) // 2
            silence += max(0, gap)
            if silence > LONGEST_GAP * SAMPLE_RATE:
                raise InputError(f"{path}: its sound leaps by {silence / SAMPLE_RATE:.0f} s.")
            check_length((len(samples) / 2 + gap) / SAMPLE_RATE)
            samples += bytes(2 * max(0, gap))
            mixer, run_start, run_length = _Mixer(path, frame.layout), time, Fraction(0)
        run_length += Fraction(frame.samples, frame.sample_rate)
        samples += mixer.add(frame)
        check_length(len(samples) / 2 / SAMPLE_RATE)
    samples += mixer.rest() if mixer else b""
    return start, np.frombuffer(samples, "<i2").astype(np.int16, copy=False)


class _Mixer:
    """Resamples frames of one form and mixes their channels."""

    def __init__(self, path: str, layout: av.AudioLayout):
        self._path = path
        # The mix comes from FFmpeg, which knows how loud each loudspeaker of a layout has to be.
        layouts = ["mono"] if layout.nb_channels == 1 else ["mono", layout]
        self._resamplers = [av.AudioResampler("s16", one, SAMPLE_RATE) for one in layouts]
        self._waiting = [np.empty((one.nb_channels, 0), np.int16) for one in map(av.AudioLayout, layouts)]

    def add(self, frame: av.AudioFrame | None) -> bytes:
        """What is ready after one more frame."""
        for number, resampler in enumerate(self._resamplers):
            try:
                frames = [one.to_ndarray() for one in resampler.resample(frame) if one is not None]  # [1, nC]
            except (av.FFmpegError, ValueError) as error:
                raise InputError(f"{self._path}: its sound cannot be resampled ({error}).") from error
            waiting = self._waiting[number]
            self._waiting[number] = np.concatenate([waiting, *(one.reshape(-1, len(waiting)).T for one in frames)], 1)
        ready = min(part.shape[1] for part in self._waiting)
        if len(self._waiting) > 1 and frame is not None:
            ready -= ready % _BLOCK
        blocks = [_mixed([part[:, at : at + _BLOCK] for part in self._waiting]) for at in range(0, ready, _BLOCK)]
        self._waiting = [part[:, ready:] for part in self._waiting]
        return b"".join(block.astype("<i2", copy=False).tobytes() for block in blocks)

    def rest(self) -> bytes:
        """What is still in it."""
        return self.add(None)


def _mixed(parts: list[np.ndarray]) -> np.ndarray:
    """The mix int16[1, n], or one of the channels int16[C, n], if they cancel each other."""
    mix, *channels = parts
    if not channels:
        return mix
    power = np.square(channels[0], dtype=np.float64).mean(1)
    if np.square(mix, dtype=np.float64).mean() >= _CANCELLED * power.max():
        return mix
    # Not the loudest: of two that are equally loud, it would be this one here, and that one there.
    return channels[0][np.argmax(power >= power.max() / 2)]
