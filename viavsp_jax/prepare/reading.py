"""Reads the media of clips, ahead of their use, in worker processes.

Imports neither PyTorch nor JAX: this is what the workers start with. T frames, n audio samples.
"""

import collections
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from viavsp_jax.data import media, noise
from viavsp_jax.errors import InputError
from viavsp_jax.prepare.manifest import Clip

# Batches read ahead for each worker: one that it works at, one that waits.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Media:
    """One clip as the encoder takes it and as a record holds it."""

    frames: np.ndarray  # uint8[T, 96, 96] grey
    audio: np.ndarray  # float32[T, 104] audio features
    video: bytes  # the file
    samples: np.ndarray  # int16[n], with noise


class Waveforms:
    """The waveforms of a split's clips, read when they are asked for, as noise.babble_of wants them."""

    def __init__(self, clips: Sequence[Clip] | Mapping[int, Clip], count: int):
        self._clips, self._count = clips, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, str | np.ndarray]:
        clip = self._clips[index]
        try:
            return {"id": clip.id, "audio": media.read_audio(clip.audio)}
        except InputError:  # it is reported when its own turn comes
            return {"id": clip.id, "audio": np.zeros(0, np.int16)}

    def some(self, indices: Iterable[int]) -> "Waveforms":
        """The same, but only these can be read."""
        return Waveforms({index: self._clips[index] for index in indices}, self._count)


@dataclasses.dataclass(frozen=True)
class Noise:
    """What is mixed into the audio of a split's clips, at a fixed signal-to-noise ratio."""

    source: Waveforms | noise.Recordings
    snr_db: float
    seed: int

    def add(self, clip: Clip, samples: np.ndarray) -> np.ndarray:
        """int16[n] -> int16[n]; the noise depends on the clip's id and the seed only.

        Raises InputError if no noise can be heard.
        """
        rng = noise.rng_for(clip.id, self.seed)
        if isinstance(self.source, noise.Recordings):
            added = self.source.draw(rng, len(samples))
        else:
            added = noise.babble_of(self.source, clip.id, len(samples), rng)
        return noise.mix(samples, added, self.snr_db)

    def for_clips(self, clips: Sequence[Clip]) -> "Noise":
        """The same for some clips only: all clips of a split are too much to be sent to a worker with each batch."""
        if isinstance(self.source, noise.Recordings):
            return self
        drawn = [noise.draw_clips(noise.rng_for(clip.id, self.seed), len(self.source)) for clip in clips]
        return dataclasses.replace(self, source=self.source.some({index for indices in drawn for index in indices}))


def read_media(clip: Clip, added: Noise | None) -> Media:
    """Reads and decodes one clip. Raises InputError if its video or audio cannot be read."""
    frames, samples = media.read_video(clip.video), media.read_audio(clip.audio)
    if added is not None:
        samples = added.add(clip, samples)
    return Media(frames, media.audio_features(samples, len(frames)), Path(clip.video).read_bytes(), samples)


def _read_batch(clips: Sequence[Clip], added: Noise | None) -> list[Media | str]:
    found = []
    for clip in clips:
        try:
            found.append(read_media(clip, added))
        except InputError as error:
            found.append(str(error))
    return found


class Reader:
    """Worker processes that read clips, as a context; without workers this process reads them itself."""

    def __init__(self, workers: int):
        self._workers = workers

    def __enter__(self) -> "Reader":
        if self._workers:
            # A fork would copy the threads and locks of PyTorch or JAX in any state they happen to be in.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, initializer=start_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, batches: Iterable[Sequence[Clip]], added: Noise | None) -> Iterator[list[Media | str]]:
        """The media of each batch, in order; instead of a clip that cannot be read, the reason.

        Raises InputError if a worker dies.
        """
        if not self._workers:
            for batch in batches:
                yield _read_batch(batch, added)
            return
        waiting: collections.deque[tuple[Sequence[Clip], Future]] = collections.deque()
        for batch in batches:
            task = self._pool.submit(_read_batch, batch, added and added.for_clips(batch))
            waiting.append((batch, task))
            if len(waiting) > _AHEAD * self._workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(batch: Sequence[Clip], task: Future) -> list[Media | str]:
    try:
        return task.result()
    except BrokenProcessPool as error:
        first = batch[0]
        raise InputError(
            f"{first.video}: a worker died while this clip (id {first.id!r}) or one near it was read, expected memory "
            "for --workers processes; --workers 0 reads without them."
        ) from error


def start_worker() -> None:
    """Leaves Ctrl-C to the process that started the workers, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Workers wait for work for ever, even if that process was killed and could not tell them.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
