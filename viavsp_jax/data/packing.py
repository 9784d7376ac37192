"""The rows that training and decoding run on, and how utterances are laid out in them.

An utterance is `[instruction][speech][after][label]`, where `after` is what a chat template puts there, else nothing.
The utterances of a row have the same instruction, which is there once:

    [instruction][speech][after][label][speech][after][label]…

Each of them sees it and itself, as if it were alone in the row. So its positions begin where the instruction ends.

    name                    shape     meaning
    features                [T, E]    encoder frames of all utterances of the row, back to back
    frame_slot              [T]       row position each frame is averaged into; S for padding
    tokens                  [S]       token ids at text positions, 0 elsewhere
    is_speech               [S]       positions filled by segment means
    segment_ids             [S]       0: padding, 1: the instruction, 2, 3, …: the utterances
    positions               [S]       in the instruction or, after it, in the utterance
    label_index             [L]       positions whose next token is a label
    targets, weights        [L]       that token; 1 / (label tokens of its utterance), 0 for padding
    modality                [L]       index in MODALITIES of what its utterance was heard or seen by, or 3

With a CTC head, rows tell also, for each of their clips, so many frames U as the longest clip of the training has:

    clip_frame   [C, U]               where in the row's frames its own are; T for padding
    units        [C, U]               what is said, in units of words; 0, the blank, behind the last

Where the encoder is trained, rows hold clips in place of encoder frames, each with room for U = T / C of them:

    video                   [C, U, 88, 88]  uint8, grey
    audio                   [C, U, 104]     stacked filterbank values
    has_audio                        [C]             whether the clip's audio is to be used
    has_video                        [C, U]          frames whose picture is to be used
    frame_slot              [C, U]
    units                   [C, U]

Letters: T frames, S positions, L labels, C clips, E encoder width.
"""

import dataclasses
import math
from collections.abc import Sequence

import grain
import jax
import numpy as np
from jax.typing import DTypeLike

from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.data.features import AUDIO_DIM, CROP_SIZE
from viavsp_jax.data.prompt import Prompt
from viavsp_jax.data.units import Units
from viavsp_jax.runtime.errors import InputError

Arrays = dict[str, np.ndarray]

NO_FRAME = -1  # of an utterance; in a row it is the one behind the last
INSTRUCTION = 1  # segment id, as in viavsp_jax/models/attention.py

# Arrays of a row that come from the encoder's cache, and those that go through the encoder.
FEATURES = ("features", "frame_slot")
CLIPS = ("video", "audio", "has_audio", "has_video", "frame_slot")


@dataclasses.dataclass(frozen=True)
class Size:
    """Something of which a record needs more than a row holds."""

    what: str
    needed: int
    held: int  # by a row or, for frames of clips, each clip of one
    option: str  # of config.data.row, too small
    of_row: int  # what it has to be at least
    holder: str = "a row"

    def __str__(self) -> str:
        return f"needs {self.needed} {self.what}, {self.holder} holds {self.held}"


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Capacity of a row: positions S, frames T, label tokens L, the most utterances and the longest it may hold."""

    positions: int
    frames: int
    labels: int
    clips: int
    window: int  # positions

    @property
    def clip_frames(self) -> int:
        """U, what a clip in a row of clips has room for."""
        return self.frames // self.clips

    def part(self, share: float, instruction: int, of_clips: bool) -> "RowShape":
        """Of rows that hold such a share of the utterances, with the instruction in each, and as long ones.

        Positions are a multiple of 64. Of `share` 1 it is the row itself.
        """
        if share == 1:
            return self
        clips = math.ceil(self.clips * share)
        positions = math.ceil(((self.positions - instruction) * share + instruction) / 64) * 64
        return RowShape(
            max(positions, self.window),
            self.clip_frames * clips if of_clips else max(math.ceil(self.frames * share), 2 * self.window),
            max(math.ceil(self.labels * share), self.window),
            clips,
            self.window,
        )

    def too_small(self, frames: int, positions: int, labels: int, of_clips: bool) -> list[Size]:
        """All that a record of these sizes needs more of than a row, of clips or of encoder frames, holds."""
        sizes = [Size("label tokens", labels, self.labels, "labels", labels)]
        if of_clips:
            of_row = frames * self.clips
            sizes.append(Size("frames", frames, self.clip_frames, "frames", of_row, "each clip of a row"))
        else:
            sizes.append(Size("frames", frames, self.frames, "frames", frames))
        sizes += [Size("positions", positions, getattr(self, x), x, positions) for x in ("positions", "window")]
        return [size for size in sizes if size.needed > size.held]


def speech_prompt(record: Arrays, prompt: Prompt) -> Arrays:
    """`[instruction][speech][after]` of one record: frame_slot [t], tokens [s], is_speech [s].

    Raises InputError naming the record if one of its languages is unknown.
    """
    try:
        instruction = prompt.instruction(record["source_language"], record["target_language"])
    except InputError as error:
        raise InputError(f"record {record['id']}: {error}") from error
    counts = record["cluster_counts"]
    slots, after = len(instruction) + np.arange(len(counts)), list(prompt.after)
    return {
        "frame_slot": np.repeat(slots, counts).astype(np.int32),
        "tokens": np.array(instruction + [0] * len(counts) + after, np.int32),
        "is_speech": np.array([False] * len(instruction) + [True] * len(counts) + [False] * len(after)),
    }


def speech_frames(record: Arrays, frame_slot: np.ndarray, clip_frames: int | None, dtype: DTypeLike) -> Arrays:
    """What a row gets of the frames of one record, whose slots are int32[t].

    Either features [t, E] and frame_slot [t], or one clip with room for `clip_frames`: the arrays of the module's
    second table for C = 1, where slots of padding are -1, as it depends on the row which position they stand for.
    """
    if clip_frames is None:
        return {"features": record["features"].astype(dtype), "frame_slot": frame_slot}
    padding = [(0, clip_frames - len(frame_slot))]
    return {
        "video": np.pad(record["video"], [*padding, (0, 0), (0, 0)])[None],
        "audio": np.pad(record["audio"], [*padding, (0, 0)])[None],
        "has_audio": np.array([record["has_audio"]]),
        "has_video": np.pad(record["has_video"], padding)[None],
        "frame_slot": np.pad(frame_slot, padding, constant_values=-1)[None],
    }


@dataclasses.dataclass(frozen=True)
class ClipUnits:
    """What rows hold for a CTC head."""

    units: Units
    frames: int  # U, of the longest clip

    def of(self, text: str, frames: int) -> np.ndarray:
        """int32[U]; all blank for what cannot be said in so few frames, between equal units a blank."""
        found = self.units.of(text)
        if len(found) + (found[1:] == found[:-1]).sum() > frames:
            found = found[:0]
        return np.pad(found, (0, self.frames - len(found)))


@dataclasses.dataclass(frozen=True)
class ToUtterance(grain.transforms.Map):
    """Record → one utterance, alone in its row; checks that it fits one.

    Records are those of feature shards or, for rows of clips, what a `ClipLoader` makes of media.
    """

    prompt: Prompt
    shape: RowShape
    dtype: DTypeLike
    of_clips: bool = False
    clip_units: ClipUnits | None = None  # for a CTC head

    def map(self, record: Arrays) -> Arrays:
        """The arrays of the module's table for one utterance, unpadded, and int32[P] its `instruction` once more.

        Raises InputError if the record does not fit; `lengths.check` finds that earlier, and for all records.
        """
        try:
            label = self.prompt.label(record["transcript"])
        except InputError as error:
            raise InputError(f"record {record['id']}: {error}") from error
        utterance = speech_prompt(record, self.prompt)
        start = len(utterance["tokens"])
        frame_slot = utterance["frame_slot"]
        for size in self.shape.too_small(len(frame_slot), start + len(label) - 1, len(label), self.of_clips):
            raise InputError(f"record {record['id']} {size}: raise config.data.row.{size.option} or drop the record")
        return {
            **speech_frames(record, frame_slot, self.shape.clip_frames if self.of_clips else None, self.dtype),
            **self._for_ctc(record["transcript"], len(frame_slot)),
            # The last label token is predicted, never read.
            "tokens": np.append(utterance["tokens"], label[:-1]).astype(np.int32),
            "is_speech": np.append(utterance["is_speech"], np.zeros(len(label) - 1, bool)),
            "label_index": start - 1 + np.arange(len(label), dtype=np.int32),
            "targets": np.array(label, np.int32),
            "weights": np.full(len(label), 1 / len(label), np.float32),
            # Names of feature shards may tell nothing.
            "modality": np.full(len(label), record.get("modality", len(MODALITIES)), np.int32),
            "instruction": utterance["tokens"][: utterance["is_speech"].argmax()],
        }

    def _for_ctc(self, text: str, frames: int) -> Arrays:
        if self.clip_units is None:
            return {}
        found = {"units": self.clip_units.of(text, frames)[None]}
        if not self.of_clips:
            places = np.full((1, self.clip_units.frames), NO_FRAME, np.int32)
            places[0, :frames] = np.arange(frames)
            found["clip_frame"] = places
        return found


def to_row(utterances: Sequence[Arrays], shape: RowShape) -> Arrays:
    """The row of these utterances, which have one instruction and fit together."""
    frames = utterances[0].get("features")
    longest = utterances[0]["units"].shape[1] if "units" in utterances[0] else 0
    row = empty_row(shape, *((None, None) if frames is None else (frames.shape[1], frames.dtype)), longest)
    filled, shift = dict.fromkeys(row, 0), 0
    for number, utterance in enumerate(utterances):
        parts = _part(utterance, number, shift, shape.positions)
        if "clip_frame" in utterance:
            places = utterance["clip_frame"]
            parts["clip_frame"] = np.where(places == NO_FRAME, shape.frames, places + filled["features"])
        for name, part in parts.items():
            row[name][filled[name] : filled[name] + len(part)] = part
            filled[name] += len(part)
        shift += len(utterance["tokens"]) - len(utterance["instruction"])
    return row


def _part(utterance: Arrays, number: int, shift: int, padding: int) -> Arrays:
    """What an utterance adds to a row, `shift` positions behind where it would be if it were alone."""
    instruction, slots = len(utterance["instruction"]), utterance["frame_slot"]
    first = instruction if number else 0  # it is there once
    positions = np.arange(first, len(utterance["tokens"]))
    return {
        **{
            name: utterance[name]
            for name in (*FEATURES, *CLIPS, "units", "targets", "weights", "modality")
            if name in utterance
        },
        "frame_slot": np.where(slots < 0, padding, slots + shift),
        **{name: utterance[name][first:] for name in ("tokens", "is_speech")},
        "segment_ids": np.where(positions < instruction, INSTRUCTION, INSTRUCTION + 1 + number),
        "positions": positions,
        "label_index": utterance["label_index"] + shift,
    }


def empty_row(shape: RowShape, width: int | None, dtype: DTypeLike, longest: int = 0) -> Arrays:
    """A row of padding: of encoder frames so wide, or of clips where `width` is None.

    For a CTC head `longest` is what the longest clip has of frames.
    """
    s, n, c, u = shape.positions, shape.labels, shape.clips, shape.clip_frames
    if width is None:
        frames = empty_clips(c, u) | {"frame_slot": np.full((c, u), s, np.int32)}
    else:
        frames = {"features": np.zeros((shape.frames, width), dtype), "frame_slot": np.full(shape.frames, s, np.int32)}
        frames |= {"clip_frame": np.full((c, longest), shape.frames, np.int32)} if longest else {}
    return {
        **frames,
        **({"units": np.zeros((c, longest), np.int32)} if longest else {}),
        "is_speech": np.zeros(s, bool),
        **{name: np.zeros(s, np.int32) for name in ("tokens", "segment_ids", "positions")},
        **{name: np.zeros(n, np.int32) for name in ("label_index", "targets", "modality")},
        "weights": np.zeros(n, np.float32),
    }


def empty_clips(clips: int, frames: int) -> Arrays:
    """So many clips without anything to hear or see, of so many frames."""
    return {
        "video": np.zeros((clips, frames, CROP_SIZE, CROP_SIZE), np.uint8),
        "audio": np.zeros((clips, frames, AUDIO_DIM), np.float32),
        "has_audio": np.zeros(clips, bool),
        "has_video": np.zeros((clips, frames), bool),
    }


def stack_rows(rows: Sequence[Arrays]) -> Arrays:
    """The batch of these rows."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
