"""A file or arrays as they are transcribed: sound, mouth crops, and where they show a mouth.

Letters: T video frames (25 a second), n audio samples (16,000 a second).
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np

from viavsp_jax.data import noise
from viavsp_jax.data.features import FRAME_RATE, FRAME_SIZE, SAMPLES_PER_FRAME
from viavsp_jax.prepare.recordings.mouth import MouthTrack, NoFace, given_crops, mouth_crops
from viavsp_jax.prepare.recordings.recording import Recording, read_recording
from viavsp_jax.prepare.recordings.sound import is_silent
from viavsp_jax.prepare.recordings.voice import moves
from viavsp_jax.runtime.errors import InputError

# Called with what is being done and the share of it that is done.
Progress = Callable[[str, float], None]

USED = {"av": "lips and sound", "audio": "sound alone", "video": "lips alone"}  # the modalities in words

_LOOSE_END = 5  # frames by which sound may be longer than the pictures without being read to its end
_HELD = FRAME_RATE // 2  # frames that stand still and so show no speaking mouth
_FINDING = "finding the mouth"


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording as arrays."""

    video: np.ndarray | None = None  # uint8[T, 96, 96], grey mouth crops, 25 a second
    audio: np.ndarray | None = None  # int16[n], 16 kHz mono


@dataclasses.dataclass(frozen=True)
class Source:
    """All of a recording."""

    name: str  # for messages
    num_frames: int  # T
    frames: np.ndarray | None  # uint8[T, 96, 96], mouth crops; None where lips are not read
    seen: np.ndarray  # bool[T]: where they show a mouth
    samples: np.ndarray | None  # int16[n]; None where nothing is heard
    mouth: MouthTrack | None
    recording: Recording | None  # None for arrays
    note: str | None  # why something that it has is not used, a sentence

    @property
    def modality(self) -> str:
        """What there is to use: av, audio or video."""
        if self.samples is None:
            return "video"
        return "audio" if self.frames is None else "av"

    def with_babble(self, snr_db: float) -> "Source":
        """The same with several voices at once, made of its own, so many dB below the sound; as it is without sound."""
        if self.samples is None or is_silent(self.samples):
            return self
        voices = noise.babble([self.samples] * noise.NUM_TALKERS, len(self.samples), noise.rng_for("transcribe", 0))
        return dataclasses.replace(self, samples=noise.mix(self.samples, voices, snr_db))


def read_source(
    media: str | os.PathLike | Clip,
    modality: str | None,
    mean_face: np.ndarray | None,
    max_seconds: float | None,
    audio_track: int | None,
    progress: Progress,
) -> Source:
    """Reads a recording.

    Args:
      media: a video or audio file, or arrays.
      modality: av, audio or video, which it must have then; None: what it has.
      mean_face: see viavsp_jax.prepare.recordings.mouth.
      max_seconds: longer files are refused; None: none are.
      audio_track: of a file with several, counted from 1; None: the first that can be heard.

    Raises InputError if it cannot be read, is too long or lacks what `modality` needs.
    """
    if isinstance(media, Clip):
        recording, name = None, "the arrays"
        samples, has_video = _checked_sound(media.audio), media.video is not None
    else:
        recording, name = read_recording(media, max_seconds, audio_track), os.fspath(media)
        samples, has_video = recording.samples, recording.size is not None
    for wanted, there, what in (("audio", samples is not None, "sound"), ("video", has_video, "pictures")):
        if modality in ("av", wanted) and not there:
            raise InputError(f"{name}: has no {what}, which the modality {modality} needs")
    samples = None if modality == "video" else samples
    mouth = note = None
    if has_video and modality != "audio":
        try:
            mouth = _mouth(media if recording is None else recording, modality, mean_face, progress)
        except NoFace as error:
            if samples is None:
                raise
            if modality is not None:
                raise NoFace(f"{error}; the sound alone can be used (modality audio)") from None
            note = f"{error}; the sound alone is used"
    heard = 0 if samples is None else -(-len(samples) // SAMPLES_PER_FRAME)
    frames, seen, num_frames = None, np.zeros(heard, bool), heard
    if mouth is not None:
        frames, num_frames = mouth.crops, len(mouth.crops)
        seen = mouth.shown & mouth.found & moves(frames, _HELD)
        if num_frames and heard - num_frames > _LOOSE_END:
            more, num_frames = heard - num_frames, heard
            frames, seen = np.concatenate([frames, np.repeat(frames[-1:], more, 0)]), np.pad(seen, (0, more))
    if not num_frames:
        raise InputError(f"{name}: is empty, expected at least one frame")
    return Source(name, num_frames, frames, seen, samples, mouth, recording, note)


def _mouth(
    media: Clip | Recording, modality: str | None, mean_face: np.ndarray | None, progress: Progress
) -> MouthTrack:
    """The mouth in all pictures. Raises NoFace where there is none, or not enough of it for what is wanted."""
    if isinstance(media, Clip):
        return _checked_crops(media.video)
    progress(_FINDING, 0.0)
    least = {} if modality else {"least_found": 0.0}
    return mouth_crops(media, mean_face, functools.partial(progress, _FINDING), **least)


def _checked_sound(samples: np.ndarray | None) -> np.ndarray | None:
    if samples is not None and (samples.dtype != np.int16 or samples.ndim != 1):
        raise InputError(f"the audio is {samples.dtype}{list(samples.shape)}, expected 16 kHz mono, int16[n]")
    return samples


def _checked_crops(crops: np.ndarray) -> MouthTrack:
    """Crops that somebody made already."""
    if crops.ndim != 3 or crops.shape[1:] != (FRAME_SIZE, FRAME_SIZE) or crops.dtype != np.uint8:
        raise InputError(f"the video is {crops.dtype}{list(crops.shape)}, expected grey mouth crops, uint8[T, 96, 96]")
    return given_crops(crops)
