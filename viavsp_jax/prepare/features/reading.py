"""Reads the media of clips, ahead of their use, in worker processes.

Imports neither PyTorch nor JAX: this is what the workers start with. T frames, n audio samples.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from viavsp_jax.data import noise
from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE, audio_features
from viavsp_jax.data.lost import LostVideo
from viavsp_jax.data.wild import Wild
from viavsp_jax.prepare.manifest_files import MAX_FRAMES, Clip, lengths_differ
from viavsp_jax.prepare.recordings.clip import read_clip, read_speech
from viavsp_jax.prepare.workers import WorkerDied, Workers
from viavsp_jax.runtime.errors import InputError

# Batches read ahead for each worker: one that it works at, one that waits.
_AHEAD = 2
# Seconds that a batch may take, of a slow disk, too; what takes longer will not end.
_PATIENCE = 600
# Frames by which a video may differ from the manifest: containers count them wrongly at the ends.
_MISCOUNTED = 5


@dataclasses.dataclass(frozen=True)
class Media:
    """One clip as the encoder takes it and as a record holds it."""

    frames: np.ndarray  # uint8[T, 96, 96] grey
    audio: np.ndarray  # float32[T, 104] audio features
    video: bytes  # the file
    samples: np.ndarray  # int16[n], with noise
    seen: np.ndarray | None = None  # bool[T], False where the encoder is to see nothing; None: it sees all


class Talkers:
    """The clips of a split that babble is drawn from, read when noise.babble_of asks for them."""

    def __init__(self, clips: Sequence[Clip] | Mapping[int, Clip], count: int):
        self._clips, self._count = clips, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, str | np.ndarray]:
        clip = self._clips[index]
        try:
            return {"id": clip.id, "audio": read_speech(clip.audio)}
        except InputError:  # it is reported when its own turn comes
            return {"id": clip.id, "audio": np.zeros(0, np.int16)}

    def some(self, indices: Iterable[int]) -> "Talkers":
        """The same, but only these can be read."""
        return Talkers({index: self._clips[index] for index in indices}, self._count)


@dataclasses.dataclass(frozen=True)
class Noise:
    """What is mixed into the audio of a split's clips, at a fixed signal-to-noise ratio."""

    source: Talkers | noise.Recordings
    snr_db: float
    seed: int
    talkers: int = noise.NUM_TALKERS  # heard at once in babble

    def add(self, clip: Clip, samples: np.ndarray) -> np.ndarray:
        """int16[n] -> int16[n]; the noise depends on the clip's id and the seed only.

        Raises InputError if no noise can be heard.
        """
        rng = noise.rng_for(clip.id, self.seed)
        if isinstance(self.source, noise.Recordings):
            added = noise.draw_part(self.source, len(samples), rng, self.source.folder)
        else:
            added = noise.babble_of(self.source, clip.id, len(samples), rng, self.talkers)
        return noise.mix(samples, added, self.snr_db)

    def for_clips(self, clips: Sequence[Clip]) -> "Noise":
        """The same for some clips only: all clips of a split are too much to be sent to a worker with each batch."""
        if isinstance(self.source, noise.Recordings):
            return self
        count, drawn = len(self.source), set()
        for clip in clips:
            drawn.update(noise.draw_clips(noise.rng_for(clip.id, self.seed), count, self.talkers))
        return dataclasses.replace(self, source=self.source.some(drawn))


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is done to a split's clips once they are read, in this order; None: nothing."""

    wild: Wild | None = None
    noise: Noise | None = None
    lost: LostVideo | None = None

    def for_clips(self, clips: Sequence[Clip]) -> "Changes":
        """See `Noise.for_clips`."""
        return dataclasses.replace(self, noise=self.noise and self.noise.for_clips(clips))

    def __call__(
        self, clip: Clip, frames: np.ndarray, samples: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """uint8[T, 96, 96] and int16[n] -> what is seen and heard in their place, and `Media.seen`."""
        seen = None
        if self.wild is not None:
            frames, samples = self.wild.change(clip.id, frames, samples)
        if self.noise is not None:
            samples = self.noise.add(clip, samples)
        if self.lost is not None:
            frames, seen = self.lost.lose(clip.id, frames)
        return frames, samples, seen


UNCHANGED = Changes()


def read_media(clip: Clip, changes: Changes = UNCHANGED, waveform: str = "int16") -> Media:
    """Reads and decodes one clip; `waveform` says what audio features are made of, see features.audio_features.

    Raises InputError if its video or audio cannot be read, or is of another length.
    """
    read = read_clip(clip.video, clip.audio)
    frames, samples = read.frames, read.samples
    if abs(len(frames) - clip.num_frames) > _MISCOUNTED or len(frames) > MAX_FRAMES:
        raise InputError(
            f"{clip.video}: has {len(frames)} frames, expected {clip.num_frames}, as the manifest says, and at most "
            f"{MAX_FRAMES}."
        )
    if lengths_differ(len(frames), len(samples)):
        heard, seen = len(samples) / SAMPLE_RATE, len(frames) / FRAME_RATE
        raise InputError(f"{clip.audio}: lasts {heard:.2f} s, expected {seen:.2f} s as video.")
    frames, samples, seen = changes(clip, frames, samples)
    return Media(frames, audio_features(samples, len(frames), waveform), read.video, samples, seen)


def _read_batch(clips: Sequence[Clip], changes: Changes, waveform: str) -> list[Media | str]:
    found = []
    for clip in clips:
        try:
            found.append(read_media(clip, changes, waveform))
        except InputError as error:
            found.append(str(error))
        except MemoryError:
            found.append(
                f"{clip.video}: is too large for the memory there is, expected a clip of the manifest's length."
            )
    return found


class Reader(Workers):
    """Worker processes that read clips, as a context; without workers this process reads them itself.

    A clip at which a worker dies, or which takes minutes, is tried once more, alone, before it is given up. Without
    workers such a clip ends this process.
    """

    def __init__(self, workers: int):
        super().__init__(workers, _PATIENCE)

    def read(
        self, batches: Iterable[Sequence[Clip]], changes: Changes = UNCHANGED, waveform: str = "int16"
    ) -> Iterator[list[Media | str]]:
        """The media of each batch, in order; instead of a clip that cannot be read, the reason.

        See `read_media` for `waveform`.
        """
        if not self._count:
            for batch in batches:
                yield _read_batch(batch, changes, waveform)
            return
        waiting: collections.deque[Future] = collections.deque()
        for batch in batches:
            waiting.append(self.submit(self._read, batch, changes.for_clips(batch), waveform))
            if len(waiting) > _AHEAD * self._count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _read(self, batch: Sequence[Clip], changes: Changes, waveform: str) -> list[Media | str]:
        try:
            return self.do(_read_batch, batch, changes, waveform)
        except WorkerDied:
            return [self._read_alone(clip, changes, waveform) for clip in batch]

    def _read_alone(self, clip: Clip, changes: Changes, waveform: str) -> Media | str:
        try:
            (found,) = self.do(_read_batch, [clip], changes, waveform)
        except WorkerDied as death:
            return (
                f"{clip.video}: the process that read this clip died twice ({death}), expected a video and audio that "
                "can be decoded."
            )
        return found
