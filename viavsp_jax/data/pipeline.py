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
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from viavsp_jax.data import records
from viavsp_jax.data.prompt import Prompt
from viavsp_jax.errors import InputError

Arrays = dict[str, np.ndarray]

# Rows that are filled at the same time: more means fuller rows and more memory.
OPEN_ROWS = 32


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
            ("positions", positions, min(self.shape.window, self.shape.positions), "window"),
        ):
            if size > limit:
                raise InputError(
                    f"record {record['id']} needs {size} {what}, a row holds {limit}: raise config.data.row.{option} "
                    "or drop the record"
                )


def to_row(packed: Arrays, shape: RowShape) -> Arrays:
    """Moves frame and label indices from their utterance's start to the row's, and drops the packer's helpers."""
    segments = packed["tokens_segment_ids"]
    starts = np.zeros(segments.max() + 1, np.int32)
    for segment in range(1, len(starts)):
        starts[segment] = np.argmax(segments == segment)

    def placed(name: str, padding: int) -> np.ndarray:
        owner = packed[f"{name}_segment_ids"]
        return np.where(owner > 0, packed[name] + starts[owner], padding).astype(np.int32)

    return {
        **{name: packed[name] for name in ("features", "tokens", "is_speech", "targets", "weights")},
        "frame_slot": placed("frame_slot", shape.positions),
        "label_index": placed("label_index", 0),
        "segment_ids": segments.astype(np.int32),
        "positions": packed["tokens_positions"].astype(np.int32),
    }


def stack_rows(rows: list[Arrays], count: int) -> Arrays:
    """Stacks rows to a batch of `count`; missing ones, at the end of a pass, become empty rows (all zeros)."""
    empty = jax.tree.map(np.zeros_like, rows[0])
    return jax.tree.map(lambda *xs: np.stack(xs), *rows, *[empty] * (count - len(rows)))


def packed_batches(dataset: grain.MapDataset, to_utterance: ToUtterance, rows: int) -> grain.IterDataset:
    """Batches of `rows` packed rows from a dataset of records."""
    shape = to_utterance.shape
    lengths = {
        **dict.fromkeys(("features", "frame_slot"), shape.frames),
        **dict.fromkeys(("tokens", "is_speech"), shape.positions),
        **dict.fromkeys(("label_index", "targets", "weights"), shape.labels),
    }
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset.map(to_utterance).to_iter_dataset(grain.ReadOptions(num_threads=4)),
        length_struct=lengths,
        num_packing_bins=OPEN_ROWS,
        max_sequences_per_bin=shape.clips,
        shuffle_bins=False,
    )
    return packed.map(lambda row: to_row(row, shape)).batch(rows, batch_fn=lambda batch: stack_rows(batch, rows))


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


def training_batches(config: ml_collections.ConfigDict, prompt: Prompt) -> grain.DatasetIterator:
    """Endless shuffled batches of this process's share of `config.data.rows` rows; its state can be saved."""
    dataset = _dataset(config, "train").seed(config.seed).shuffle()
    dataset = dataset[jax.process_index() :: jax.process_count()].repeat()
    rows = config.data.rows // jax.process_count()
    batches = packed_batches(dataset, _to_utterance(config, prompt), rows)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2))


def validation_batches(config: ml_collections.ConfigDict, prompt: Prompt) -> Iterator[Arrays]:
    """One pass over the validation split, packed like training."""
    dataset = _dataset(config, "valid")[jax.process_index() :: jax.process_count()]
    rows = config.data.rows // jax.process_count()
    return iter(packed_batches(dataset, _to_utterance(config, prompt), rows))


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
