"""How well a row fits a corpus, by packing clips of its sizes, and which row would fit better."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from viavsp_jax.data.lengths import Split
from viavsp_jax.data.packer import OpenRow, first_fit
from viavsp_jax.data.packing import RowShape
from viavsp_jax.data.prompt import Prompt

SAMPLE = 2_048  # clips whose exact sizes are known: rows of 30 of them are filled to within a percent
BADLY_FILLED, WELL_FILLED = 0.75, 0.9
_BETTER = 0.1  # filling that a proposal has to gain to be made
_NO_LIMIT = 2**30
_STEP = 64  # of positions, labels and frames that are proposed: what fills the units of a TPU evenly


@dataclasses.dataclass(frozen=True)
class Clips:
    """Sizes of clips in an order in which training may meet them: int[N] each."""

    positions: np.ndarray  # of the whole utterance
    instructions: np.ndarray  # of them before the speech, which are there once a row
    labels: np.ndarray
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def those(self, chosen: np.ndarray) -> "Clips":
        """Some of them, by bool[N] or int[N]."""
        return Clips(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Filling:
    """What rows hold on average."""

    clips: float  # in a row
    share: float  # of its places that are used: of positions or, for rows of clips, of places for clips
    largest: RowShape  # the most that one row holds of each; `window` is that of the longest clip


def sample(prompt: Prompt, splits: Sequence[Split], seed: int = 0) -> Clips:
    """Some clips of these splits, at most SAMPLE, each as likely as any other."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum([len(split.records.ids) for split in splits])
    chosen = rng.permutation(ends[-1])[:SAMPLE]
    found = []
    for split, end in zip(splits, ends, strict=True):
        own = chosen[(chosen < end) & (chosen >= end - len(split.records.ids))]
        found.append(_exact(prompt, split, own - end + len(split.records.ids)))
    clips = _joined(found)
    return clips.those(rng.permutation(len(clips)))


def longest(prompt: Prompt, splits: Sequence[Split]) -> Clips:
    """The clips with the most frames, with most segments and text together, and with most text; SAMPLE of each."""
    found = []
    for split in splits:
        text = np.array(list(map(len, split.records.transcripts)))
        sizes = split.records.frames, split.records.segments + text, text
        chosen = np.unique(np.concatenate([np.argsort(size)[-SAMPLE:] for size in sizes]))
        found.append(_exact(prompt, split, chosen))
    return _joined(found)


def _exact(prompt: Prompt, split: Split, chosen: np.ndarray) -> Clips:
    """The sizes of some clips of a split."""
    texts = [split.records.transcripts[i] for i in chosen]
    labels = np.array(prompt.label_lengths(texts) if texts else [], int)
    instructions = split.instructions[chosen]
    positions = instructions + split.records.segments[chosen] + labels - 1
    return Clips(positions, instructions - len(prompt.after), labels, split.records.frames[chosen])


def _joined(parts: Sequence[Clips]) -> Clips:
    names = [field.name for field in dataclasses.fields(Clips)]
    return Clips(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def fits(clips: Clips, shape: RowShape, of_clips: bool) -> np.ndarray:
    """bool[N], which of them a row can hold."""
    frames = shape.clip_frames if of_clips else shape.frames
    positions = min(shape.positions, shape.window)
    return (clips.positions <= positions) & (clips.labels <= shape.labels) & (clips.frames <= frames)


def pack(clips: Clips, shape: RowShape, of_clips: bool) -> Filling | None:
    """The rows of these clips, by the packer of training; None if none fits.

    A sample is soon over, so rows that are still open then are left out, unless there are no others.
    """
    open_rows: dict[int, list[OpenRow]] = {}
    done: list[list[int]] = []
    for index in np.flatnonzero(fits(clips, shape, of_clips)).tolist():
        utterance = {
            "tokens": range(clips.positions[index]),
            "instruction": range(clips.instructions[index]),
            "frame_slot": range(1 if of_clips else clips.frames[index]),
            "targets": range(clips.labels[index]),
        }
        rows = open_rows.setdefault(int(clips.instructions[index]), [])
        if (row := first_fit(rows, shape, index, utterance)) is not None:
            done.append(row.indices)
    done = done or [row.indices for rows in open_rows.values() for row in rows]
    if not done:
        return None
    sums = np.array([_used(clips.those(np.array(row))) for row in done])
    share = sums[:, 0] / shape.clips if of_clips else sums[:, 1] / shape.positions
    most = sums.max(0).tolist()
    longest = int(clips.positions.max())
    return Filling(float(sums[:, 0].mean()), float(share.mean()), RowShape(*most[1:], clips=most[0], window=longest))


def _used(row: Clips) -> tuple[int, int, int, int]:
    """Clips, positions, frames and labels of a row."""
    shared = (len(row) - 1) * int(row.instructions[0])
    return len(row), int(row.positions.sum()) - shared, int(row.frames.sum()), int(row.labels.sum())


def propose(clips: Clips, longest: Clips, shape: RowShape, of_clips: bool) -> tuple[RowShape, Filling]:
    """A row for clips of these sizes that holds about as many as one of `shape` does, and how it is filled.

    It has room for all of `longest`. Rows of encoder frames end where positions do, since the model's work goes with
    them; what else they need room for follows. Rows of clips end where the places for clips do, since the encoder runs
    on all of them.
    """
    filling = pack(clips, shape, of_clips)
    count = filling.clips if filling else shape.clips
    window, frames, labels = (int(size.max()) for size in (longest.positions, longest.frames, longest.labels))
    window, labels = _up(window), _up(labels)

    def packed(positions: int, places: int) -> tuple[RowShape, Filling]:
        limit = places * frames if of_clips else _NO_LIMIT
        most = _pack(clips, RowShape(positions, limit, _NO_LIMIT, places, window), of_clips).largest
        row = RowShape(
            max(window, _up(min(positions, most.positions))),
            limit if of_clips else _up(max(frames, most.frames)),
            max(labels, _up(most.labels)),
            most.clips,
            window,
        )
        return row, _pack(clips, row, of_clips)

    if of_clips:
        return packed(_NO_LIMIT, max(1, round(count)))
    own = float((clips.positions - clips.instructions).mean())
    tried = []
    for factor in (1, 2, 4):  # rows of more clips are filled more evenly
        tried.append(packed(max(window, _up(clips.instructions.mean() + factor * count * own)), _NO_LIMIT))
        if tried[-1][1].share >= WELL_FILLED:
            return tried[-1]
    return max(tried, key=lambda one: one[1].share)


def _pack(clips: Clips, shape: RowShape, of_clips: bool) -> Filling:
    filling = pack(clips, shape, of_clips)
    assert filling is not None, "a row was made for these clips"
    return filling


def _up(size: float) -> int:
    return math.ceil(size / _STEP) * _STEP


def options(shape: RowShape) -> str:
    """A row as the options of a command."""
    sizes = dataclasses.asdict(shape)
    return " ".join(f"--config.data.row.{name}={size}" for name, size in sizes.items())


def worth_it(now: Filling, proposed: Filling) -> bool:
    """Whether rows are so badly filled that another row is worth the words."""
    return now.share < BADLY_FILLED and proposed.share > now.share + _BETTER
