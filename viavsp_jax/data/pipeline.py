"""From records to packed rows, with Grain.

A row holds several utterances back to back, each `[instruction][speech][label]`:

    name                    shape     meaning
    features                [T, E]    encoder frames of all utterances of the row, back to back
    frame_slot              [T]       row position each frame is averaged into; S for padding
    tokens                  [S]       token ids at text positions, 0 elsewhere
    is_speech               [S]       positions filled by segment means
    segment_ids, positions  [S]       which utterance (0 = padding), position inside it
    label_index             [L]       positions whose next token is a label
    targets, weights        [L]       that token; 1 / (label tokens of its utterance), 0 for padding

Letters: T frames, S positions, L labels, E encoder width.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from viavsp_jax.data import records
from viavsp_jax.data.prompt import Prompt
from viavsp_jax.errors import InputError

Arrays = dict[str, np.ndarray]

# Rows that one stream fills at the same time. 32 would fill VASR rows 0.25 % better than 4 and hold 8 times the memory:
# each open row of 2,048 frames takes 4 MB.
OPEN_ROWS = 4
# Shared by the streams of a process: enough to hide the latency of a bucket.
READ_THREADS = 32
# Records that one stream reads ahead, about a row's worth.
READ_AHEAD = 32


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Capacity of a row: positions S, frames T, label tokens L, the most utterances and the longest it may hold."""

    positions: int
    frames: int
    labels: int
    clips: int
    window: int  # positions


def speech_prompt(record: Arrays, prompt: Prompt) -> Arrays:
    """`[instruction][speech]` of one record: features [t, E], frame_slot [t], tokens [s], is_speech [s]."""
    instruction = prompt.instruction(record["source_language"], record["target_language"])
    counts = record["cluster_counts"]
    slots = len(instruction) + np.arange(len(counts))
    return {
        "features": record["features"],
        "frame_slot": np.repeat(slots, counts).astype(np.int32),
        "tokens": np.array(instruction + [0] * len(counts), np.int32),
        "is_speech": np.array([False] * len(instruction) + [True] * len(counts)),
    }


@dataclasses.dataclass(frozen=True)
class ToUtterance(grain.transforms.Map):
    """Record → one utterance, numbered from its own start; checks that it fits a row."""

    prompt: Prompt
    shape: RowShape
    dtype: DTypeLike

    def map(self, record: Arrays) -> Arrays:
        """The arrays of the module's table for one utterance, unpadded."""
        label = self.prompt.label(record["transcript"])
        utterance = speech_prompt(record, self.prompt)
        start = len(utterance["tokens"])
        self._check(record, start + len(label) - 1, len(label))
        return {
            "features": utterance["features"].astype(self.dtype),
            "frame_slot": utterance["frame_slot"],
            # The last label token is predicted, never read.
            "tokens": np.append(utterance["tokens"], label[:-1]).astype(np.int32),
            "is_speech": np.append(utterance["is_speech"], np.zeros(len(label) - 1, bool)),
            "label_index": start - 1 + np.arange(len(label), dtype=np.int32),
            "targets": np.array(label, np.int32),
            "weights": np.full(len(label), 1 / len(label), np.float32),
        }

    def _check(self, record: Arrays, positions: int, labels: int) -> None:
        for what, size, limit, option in (
            ("label tokens", labels, self.shape.labels, "labels"),
            ("frames", len(record["features"]), self.shape.frames, "frames"),
            ("positions", positions, self.shape.positions, "positions"),
            ("positions", positions, self.shape.window, "window"),
        ):
            if size > limit:
                raise InputError(
                    f"record {record['id']} needs {size} {what}, a row holds {limit}: raise config.data.row.{option} "
                    "or drop the record"
                )


def to_row(packed: Arrays, shape: RowShape) -> Arrays:
    """Moves frame and label indices from their utterance's start to the row's, and drops the packer's helpers."""
    segments, positions = packed["tokens_segment_ids"], packed["tokens_positions"]
    starts = np.append(0, np.flatnonzero((segments > 0) & (positions == 0)))  # of padding, of utterance 1, 2, …

    def placed(name: str, padding: int) -> np.ndarray:
        owner = packed[f"{name}_segment_ids"]
        return np.where(owner > 0, packed[name] + starts[owner], padding).astype(np.int32)

    return {
        **{name: packed[name] for name in ("features", "tokens", "is_speech", "targets", "weights")},
        "frame_slot": placed("frame_slot", shape.positions),
        "label_index": placed("label_index", 0),
        "segment_ids": segments,
        "positions": positions,
    }


def empty_row(shape: RowShape, width: int, dtype: DTypeLike) -> Arrays:
    """A row of padding."""
    s, t, n = shape.positions, shape.frames, shape.labels
    return {
        "features": np.zeros((t, width), dtype),
        "frame_slot": np.full(t, s, np.int32),
        "is_speech": np.zeros(s, bool),
        **{name: np.zeros(s, np.int32) for name in ("tokens", "segment_ids", "positions")},
        **{name: np.zeros(n, np.int32) for name in ("label_index", "targets")},
        "weights": np.zeros(n, np.float32),
    }


def stack_rows(rows: Sequence[Arrays]) -> Arrays:
    """The batch of these rows."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)


def row_streams(
    dataset: grain.MapDataset, to_utterance: ToUtterance, rows: int, own: Sequence[int]
) -> list[grain.IterDataset]:
    """For each row of a batch that is in `own`, the packed rows that stand there from batch to batch.

    Row r of `rows` is packed from records r, r + rows, r + 2·rows, … and from nothing else. So it does not matter to a
    batch how many processes share the work.
    """
    shape = to_utterance.shape
    lengths = {
        **dict.fromkeys(("features", "frame_slot"), shape.frames),
        **dict.fromkeys(("tokens", "is_speech"), shape.positions),
        **dict.fromkeys(("label_index", "targets", "weights"), shape.labels),
    }
    options = grain.ReadOptions(num_threads=max(1, READ_THREADS // len(own)), prefetch_buffer_size=READ_AHEAD)

    def stream(row: int) -> grain.IterDataset:
        packed = grain.experimental.FirstFitPackIterDataset(
            dataset[row::rows].map(to_utterance).to_iter_dataset(options),
            length_struct=lengths,
            num_packing_bins=OPEN_ROWS,
            max_sequences_per_bin=shape.clips,
            shuffle_bins=False,
        )
        return packed.map(lambda packed_row: to_row(packed_row, shape))

    return [stream(row) for row in own]


def packed_batches(
    dataset: grain.MapDataset, to_utterance: ToUtterance, rows: int, own: Sequence[int] | None = None
) -> Iterator[Arrays]:
    """One pass over a dataset of records in batches of `rows` packed rows, of which this process gets those in `own`.

    Empty rows fill up the last batches. Every process gets as many batches as the one with the most: all of them have
    to iterate, and at the same places of the program.
    """
    own = range(rows) if own is None else own
    empty = empty_row(to_utterance.shape, dataset[0]["features"].shape[1], to_utterance.dtype)
    streams = [iter(stream) for stream in row_streams(dataset, to_utterance, rows, own)]
    while True:
        found = [next(stream, None) for stream in streams]
        # A process that stopped earlier than the others would let them wait for its part of the next step.
        if not multihost_utils.process_allgather(np.array(any(found))).any():
            return
        yield stack_rows([row or empty for row in found])


def _sources(config: ml_collections.ConfigDict, names: tuple[str, ...], split: str) -> list[records.SplitSource]:
    if not config.data.path:
        raise InputError("config.data.path is not set: expected the folder that holds the shard folders")
    sources = [records.open_split(epath.Path(config.data.path) / name, split) for name in names]
    for source in sources:
        if source.width != config.data.feature_width:
            raise InputError(
                f"{source.folder} holds features of width {source.width}, but config.data.feature_width is "
                f"{config.data.feature_width}"
            )
    return sources


def _dataset(config: ml_collections.ConfigDict, split: str) -> grain.MapDataset:
    sources = _sources(config, config.data.train, split)
    return grain.MapDataset.concatenate([grain.MapDataset.source(source) for source in sources])


def _to_utterance(config: ml_collections.ConfigDict, prompt: Prompt) -> ToUtterance:
    return ToUtterance(prompt, RowShape(**config.data.row), np.dtype(config.dtype))


def training_batches(
    config: ml_collections.ConfigDict, prompt: Prompt, own: Sequence[int] | None = None
) -> grain.DatasetIterator:
    """Endless shuffled batches of `config.data.rows` rows; its state can be saved.

    `own` are the rows of this process (see `distributed.local_rows`), all of them by default.
    """
    rows = config.data.rows
    dataset = _dataset(config, "train").seed(config.seed).shuffle().repeat()
    streams = row_streams(dataset, _to_utterance(config, prompt), rows, range(rows) if own is None else own)
    batches = grain.experimental.ZipIterDataset(streams).map(stack_rows)
    # The streams come to the end of their open rows together: what they pack then has to last until the next time.
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=OPEN_ROWS))


def validation_batches(
    config: ml_collections.ConfigDict, prompt: Prompt, own: Sequence[int] | None = None
) -> Iterator[Arrays]:
    """One pass over the validation split, packed like training (see `packed_batches`)."""
    return packed_batches(_dataset(config, "valid"), _to_utterance(config, prompt), config.data.rows, own)


def decoding_batches(
    config: ml_collections.ConfigDict, prompt: Prompt, name: str, progress: Callable[[Any], Any] = iter
) -> Iterator[tuple[list[Arrays], Arrays]]:
    """Prompts of `config.evaluate.split` of one shard folder, padded to few sizes so that few programs compile.

    Yields (records, batch) of at most `config.evaluate.rows`; empty rows fill up the last batches. The batch holds
    features [B, T, E], frame_slot [B, T], tokens and is_speech [B, S], lengths int32[B].
    """
    c = config.evaluate
    (source,) = _sources(config, (name,), c.split)
    waiting: dict[tuple[int, int], list[tuple[Arrays, Arrays]]] = {}
    for record in progress(source):
        example = speech_prompt(record, prompt)
        size = tuple(-(-len(example[key]) // c.bucket) * c.bucket for key in ("features", "tokens"))
        group = waiting.setdefault(size, [])
        group.append((record, example))
        if len(group) == c.rows:
            yield _padded(group, size, config)
            group.clear()
    for size, group in waiting.items():
        if group:
            yield _padded(group, size, config)


def _padded(
    group: list[tuple[Arrays, Arrays]], size: tuple[int, int], config: ml_collections.ConfigDict
) -> tuple[list[Arrays], Arrays]:
    frames, positions = size
    rows = config.evaluate.rows
    batch = {
        "features": np.zeros((rows, frames, config.data.feature_width), np.dtype(config.dtype)),
        "frame_slot": np.full((rows, frames), positions, np.int32),
        "tokens": np.zeros((rows, positions), np.int32),
        "is_speech": np.zeros((rows, positions), bool),
        "lengths": np.ones(rows, np.int32),
    }
    for row, (_, example) in enumerate(group):
        for name, value in example.items():
            batch[name][row, : len(value)] = value
        batch["lengths"][row] = len(example["tokens"])
    return [record for record, _ in group], batch
