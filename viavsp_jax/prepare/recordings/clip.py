"""One clip of a corpus, whatever its files are: mouth crops at 25 a second and speech at 16 kHz, from the same instant.

Files that are of that form already, mp4 at 25 frames a second and 16 kHz mono wav, are taken as they are, bit for bit.

Letters: T video frames, n audio samples.
"""

import dataclasses
import io
from fractions import Fraction

import cv2
import numpy as np

from viavsp_jax.data import addresses, media, wav
from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.prepare.recordings.mouth_video import write_video
from viavsp_jax.prepare.recordings.probe import Probe, probe
from viavsp_jax.prepare.recordings.recording import Recording, read_recording
from viavsp_jax.runtime.errors import InputError

# Seconds by which sound and pictures of one file may begin apart and are still taken to begin together.
_TOGETHER = Fraction(1, 2 * FRAME_RATE)


@dataclasses.dataclass(frozen=True)
class ClipMedia:
    """One clip, read."""

    frames: np.ndarray  # uint8[T, 96, 96] grey
    samples: np.ndarray  # int16[n]
    video: bytes  # a file of these frames


def read_clip(video: str, audio: str) -> ClipMedia:
    """Reads a clip by the addresses (see data/addresses.py) of its pictures and of its sound, the same if in one file.

    Pictures at another rate become those that a player shows in the middle of each 1/25 s; sound is resampled and mixed
    to mono.

    Raises InputError if a file is missing, damaged, cut off, of other pictures than 96x96, or without sound.
    """
    media.check_video(video)
    known, together = probe(video), video == audio
    whole = known.pictures.at_25 and not (together and _apart(known))
    recording = None if whole and not together else _read(video)
    samples = _heard(recording, known) if together else read_speech(audio)
    if whole:
        return ClipMedia(media.read_video(video), samples, addresses.read_bytes(video))
    frames = np.stack([cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for picture in recording.frames()])
    file = io.BytesIO()
    write_video(file, frames)
    return ClipMedia(frames, samples, file.getvalue())


def _apart(known: Probe) -> bool:
    """Whether pictures and sound begin at different times."""
    return known.sound is not None and abs(known.sound.start - known.pictures.start) >= _TOGETHER


def read_speech(address: str) -> np.ndarray:
    """The sound of a file: int16[n]. Raises InputError if it is missing, damaged or without sound."""
    media.require_file(address, "a wav file")
    return media.read_audio(address) if _is_speech(address) else _heard(_read(address), probe(address))


def _is_speech(address: str) -> bool:
    """Whether it is a wav file of its own whose samples are taken as they are."""
    if addresses.file_of(address) != address:
        return False
    try:
        layout = wav.read_layout(address)
    except ValueError:
        return False
    return (layout.rate, layout.channels, layout.bits) == (SAMPLE_RATE, 1, 16)


def _read(address: str) -> Recording:
    recording = read_recording(address)
    if recording.damage:
        raise InputError(f"{address}: damaged ({recording.damage}), expected a whole file.")
    return recording


def _heard(recording: Recording, known: Probe) -> np.ndarray:
    if recording.samples is not None:
        return recording.samples
    if known.sound is None:
        raise InputError(f"{recording.path}: has no sound, expected speech.")
    return np.zeros(round(known.sound.seconds * SAMPLE_RATE), np.int16)
