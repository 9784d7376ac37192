"""Makes one clip of the VASR layout from one recording, in whatever process; see prepare/mouths.py."""

import dataclasses
import hashlib
import json

import numpy as np
from etils import epath

from viavsp_jax.data.features import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from viavsp_jax.data.wav import write_speech
from viavsp_jax.prepare.lines import write_lines
from viavsp_jax.prepare.recordings.clip import read_speech
from viavsp_jax.prepare.recordings.faces import require_packages
from viavsp_jax.prepare.recordings.mouth import MouthTrack, mouth_crops
from viavsp_jax.prepare.recordings.mouth_video import write_video
from viavsp_jax.prepare.recordings.recording import Recording, read_recording
from viavsp_jax.prepare.recordings.sound import SILENCE, is_silent, levels
from viavsp_jax.prepare.recordings.voice import moves
from viavsp_jax.prepare.workers import sign_of_life
from viavsp_jax.runtime.atomic import atomic_write
from viavsp_jax.runtime.errors import InputError

_SPEECH = 0.1  # share of the level of loud speech from which on sound is taken for speech
_MOST_UNSEEN = 0.2  # seconds of speech without pictures; tracks never end at quite the same time


@dataclasses.dataclass(frozen=True)
class Source:
    """A recording to make a clip from."""

    id: str
    shard: str
    path: str  # as `audio`, an address (see data/addresses.py)
    version: list[int]  # its file's size in bytes and when it was last changed, in seconds
    audio: str | None = None  # where its sound is, if not in the same file


@dataclasses.dataclass(frozen=True)
class ClipMaker:
    """Writes visual/<shard>/<id>.mp4, audio/<shard>/<id>.wav and, last of all, notes/<shard>/<id>.json.

    A note holds what the clip was made from, and either frames, samples and found (the share of the pictures in which
    the face was seen) or the reason why there is no clip.
    """

    output: epath.Path
    mean_face: np.ndarray | None  # float64[68, 2]
    audio_only_without_face: bool

    def __post_init__(self):
        require_packages()

    def __call__(self, source: Source) -> dict:
        """Makes a clip and returns its note; one that is there already is left as it is."""
        note_path = self.output / "notes" / source.shard / f"{source.id}.json"
        visual = self.output / "visual" / source.shard / f"{source.id}.mp4"
        audio = self.output / "audio" / source.shard / f"{source.id}.wav"
        mean_face = None if self.mean_face is None else hashlib.sha256(self.mean_face.tobytes()).hexdigest()
        origin = dataclasses.asdict(source) | {"mean_face": mean_face}
        note = _read_note(note_path)
        same = all(note.get(name) == value for name, value in origin.items())
        # Where a face was found, the option changes nothing.
        same &= note.get("found", 0) > 0 or note.get("audio_only_without_face") == self.audio_only_without_face
        if same and ("reason" in note or (visual.exists() and audio.exists())):
            return note
        origin["audio_only_without_face"] = self.audio_only_without_face
        try:
            note = origin | self._write(_read(source), visual, audio)
        except InputError as error:
            note = origin | {"reason": " ".join(str(error).split())}
        except MemoryError:
            note = origin | {"reason": f"{source.path}: is too large for the memory there is, expected a shorter one."}
        write_lines(note_path, [json.dumps(note, ensure_ascii=False)])
        return note

    def _write(self, recording: Recording, visual: epath.Path, audio: epath.Path) -> dict:
        if recording.samples is None or is_silent(recording.samples):
            raise InputError(f"{recording.path}: has no sound that can be heard, expected speech.")
        crops, found = self._mouth(recording)
        with atomic_write(visual) as path:
            write_video(path, crops)
        with atomic_write(audio) as path:
            write_speech(path, recording.samples)
        return {"frames": len(crops), "samples": len(recording.samples), "found": found}

    def _mouth(self, recording: Recording) -> tuple[np.ndarray, float]:
        try:
            track = mouth_crops(recording, self.mean_face, lambda _: sign_of_life())
            _check_mouth_is_shown(recording, track)
            return track.crops, float(track.found.mean())
        except InputError:
            if not self.audio_only_without_face:
                raise
        num_frames = max(1, round(len(recording.samples) * FRAME_RATE / SAMPLE_RATE))
        return np.zeros((num_frames, FRAME_SIZE, FRAME_SIZE), np.uint8), 0.0


def _read(source: Source) -> Recording:
    recording = read_recording(source.path)
    if source.audio is not None:
        recording.samples = read_speech(source.audio)
    return recording


def _check_mouth_is_shown(recording: Recording, track: MouthTrack) -> None:
    """Raises InputError if there is speech while no picture, or one that stands still, is shown."""
    loud = levels(recording.samples)
    seen = (track.shown & moves(track.crops, FRAME_RATE))[: len(loud)]
    seen = np.pad(seen, (0, len(loud) - len(seen)))
    unseen = (~seen & (loud >= max(SILENCE, _SPEECH * np.percentile(loud, 95)))).sum() / FRAME_RATE
    if unseen > _MOST_UNSEEN:
        raise InputError(
            f"{recording.path}: for {unseen:.1f} s there is sound as loud as speech, but no picture or one that stands "
            "still, expected a video of all that is said."
        )


def _read_note(path: epath.Path) -> dict:
    """Nothing where there is none, or a damaged one: then the clip is made again."""
    try:
        note = json.loads(path.read_bytes()) if path.exists() else {}
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
