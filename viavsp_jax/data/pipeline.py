"""From records to batches of packed rows (see viavsp_jax/data/packing.py), with Grain."""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from viavsp_jax.data.clips import ClipLoader
from viavsp_jax.data.compression import Compression
from viavsp_jax.data.noise import rng_for
from viavsp_jax.data.packer import PackedRows
from viavsp_jax.data.packing import (
    Arrays,
    ClipUnits,
    ToUtterance,
    empty_clips,
    empty_row,
    speech_frames,
    speech_prompt,
    stack_rows,
)
from viavsp_jax.data.prompt import Prompt
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.data.sources import (
    LeftOut,
    compressions_of,
    drawn,
    endless,
    folder_of,
    open_sources,
    records_of,
)

# Shared by the streams of a process: enough to hide the latency of a bucket.
READ_THREADS = 32
BATCHES_AHEAD = 2


def row_streams(
    dataset: grain.MapDataset, to_utterance: ToUtterance, rows: int, own: Sequence[int]
) -> list[grain.IterDataset]:
    """For each row of a batch that is in `own`, the packed rows that stand there from batch to batch.

    Row r of `rows` is packed from records r, r + rows, r + 2·rows, … and from nothing else. So it does not matter to a
    batch how many processes share the work.
    """
    threads = max(1, READ_THREADS // len(own))
    # A row's worth, and work for every thread.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, to_utterance.shape.clips))
    return [PackedRows(dataset[row::rows].map(to_utterance), to_utterance.shape, options) for row in own]


def packed_batches(
    dataset: grain.MapDataset, to_utterance: ToUtterance, rows: int, own: Sequence[int] | None = None
) -> Iterator[Arrays]:
    """One pass over a dataset of records in batches of `rows` packed rows, of which this process gets those in `own`.

    Empty rows fill up the last batches. Every process gets as many batches as the one with the most: all of them have
    to iterate, and at the same places of the program.
    """
    own = range(rows) if own is None else own
    width = None if to_utterance.of_clips else _width(dataset)
    longest = to_utterance.clip_units.frames if to_utterance.clip_units else 0
    empty = empty_row(to_utterance.shape, width, to_utterance.dtype, longest)
    streams = [iter(stream) for stream in row_streams(dataset, to_utterance, rows, own)]
    while True:
        found = [next(stream, None) for stream in streams]
        # A process that stopped earlier than the others would let them wait for its part of the next step.
        if not multihost_utils.process_allgather(np.array(any(found))).any():
            return
        yield stack_rows([row or empty for row in found])


def _width(dataset: grain.MapDataset) -> int:
    """Of the features, by the first record that is not left out."""
    records = (dataset[index] for index in range(len(dataset)))
    return next(record["features"].shape[1] for record in records if record is not None)


def shard_folders(data: DataSettings) -> list[epath.Path]:
    """The folders that training reads, each once: several names may be of the same clips."""
    return list(dict.fromkeys(folder_of(data, name) for name in data.train))


def _dataset(data: DataSettings, names: Sequence[str], split: str, left_out: LeftOut | None = None) -> grain.MapDataset:
    """The records of these shard folders, one after the other, without augmentation."""
    if data.of_clips:
        return ClipLoader(data, names, split, left_out).clips()
    by_set = zip(names, _features(data, names, split, left_out), strict=True)
    return grain.MapDataset.concatenate(
        [records.map(functools.partial(_averaged, compressions_of(data, name)[0])) for name, records in by_set]
    )


def _features(data: DataSettings, names: Sequence[str], split: str, left_out: LeftOut | None) -> list[grain.MapDataset]:
    sources = zip(open_sources(data, names, split), names, strict=True)
    return [records_of(source, name, left_out) for source, name in sources]


def _endless(data: DataSettings, left_out: LeftOut | None) -> grain.MapDataset:
    """The training records in the order in which they are read; clips are augmented."""
    if data.of_clips:
        return ClipLoader(data, data.train, "train", left_out).augmented()

    def load(record: Arrays, epoch: int) -> Arrays:
        return _averaged(drawn(data.compression, rng_for(record["id"], data.seed, epoch)), record)

    return endless(_features(data, data.train, "train", left_out), data.weights, data.seed, load)


def _averaged(compression: Compression, record: Arrays) -> Arrays:
    """A record of features with the run lengths by which it is averaged."""
    return record | {"cluster_counts": compression.run_lengths(record["cluster_counts"])}


def _to_utterance(data: DataSettings, prompt: Prompt, clip_units: ClipUnits | None) -> ToUtterance:
    return ToUtterance(prompt, data.row, np.dtype(data.dtype), data.of_clips, clip_units)


class TrainingBatches:
    """Endless batches, each of this process's rows; made by `training_batches`."""

    def __init__(self, batches: grain.DatasetIterator, own: Sequence[int]):
        self._batches, self._own = batches, own

    def __iter__(self) -> "TrainingBatches":
        return self

    def __next__(self) -> Arrays:
        return next(self._batches)

    def places(self) -> dict[str, Any]:
        """How far each row of a batch has read, by its number, as JSON: all processes', to every process."""
        own = dict(zip(map(str, self._own), self._batches.get_state()["parents"], strict=True))
        places: dict[str, Any] = {}
        for text in from_all(json.dumps(own)):
            places |= json.loads(text)
        return places

    def move(self, places: Mapping[str, Any]) -> None:
        """Goes on from `places`, whichever processes these were of."""
        self._batches.set_state({"parents": [places[str(row)] for row in self._own]})

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._batches.close()


def from_all(text: str) -> list[str]:
    """The texts of all processes."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(mine)))
    padded = multihost_utils.process_allgather(np.pad(mine, (0, lengths.max() - len(mine))))
    return [row[:length].tobytes().decode() for row, length in zip(padded, lengths, strict=True)]


def training_batches(
    data: DataSettings,
    prompt: Prompt,
    own: Sequence[int] | None = None,
    left_out: LeftOut | None = None,
    clip_units: ClipUnits | None = None,
) -> TrainingBatches:
    """Endless shuffled batches of `data.rows` rows, from which a restart can go on.

    `own` are the rows of this process (see `sharding.local_rows`), all of them by default; `left_out` is what
    `lengths.check` gives; `clip_units` are for a CTC head.
    """
    rows = data.rows
    own = range(rows) if own is None else own
    streams = row_streams(_endless(data, left_out), _to_utterance(data, prompt, clip_units), rows, own)
    batches = grain.experimental.ZipIterDataset(streams).map(stack_rows)
    ahead = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_AHEAD)
    return TrainingBatches(iter(ahead), own)


def validation_batches(
    data: DataSettings,
    prompt: Prompt,
    own: Sequence[int] | None = None,
    left_out: LeftOut | None = None,
    clip_units: ClipUnits | None = None,
) -> Iterator[Arrays]:
    """One pass over the validation split, packed like training (see `packed_batches`)."""
    dataset = _dataset(data, data.train, "valid", left_out)
    return packed_batches(dataset, _to_utterance(data, prompt, clip_units), data.rows, own)


def evaluation_records(data: DataSettings, name: str, split: str) -> grain.MapDataset:
    """The records of a split of one shard folder, in order; where the encoder is trained, clips."""
    return _dataset(data, (name,), split)


def decoding_batches(
    data: DataSettings, prompt: Prompt, records: Iterable[Arrays], rows: int, bucket: int
) -> Iterator[tuple[list[Arrays], Arrays]]:
    """Prompts of records, padded to few sizes so that few programs compile.

    Yields (records, batch) of at most `rows`; empty rows fill up the last batches. The batch holds features [B, T, E],
    frame_slot [B, T], tokens and is_speech [B, S], lengths int32[B]; where the encoder is trained, rows of one clip in
    place of features. T and S are multiples of `bucket`.
    """
    waiting: dict[tuple[int, int], list[tuple[Arrays, Arrays]]] = {}
    for record in records:
        example = speech_prompt(record, prompt)
        size = tuple(-(-len(example[key]) // bucket) * bucket for key in ("frame_slot", "tokens"))
        group = waiting.setdefault(size, [])
        group.append((record, example))
        if len(group) == rows:
            yield _padded(group, size, data, rows)
            group.clear()
    for size, group in waiting.items():
        if group:
            yield _padded(group, size, data, rows)


def _padded(
    group: list[tuple[Arrays, Arrays]], size: tuple[int, int], data: DataSettings, rows: int
) -> tuple[list[Arrays], Arrays]:
    frames, positions = size
    batch = {
        "tokens": np.zeros((rows, positions), np.int32),
        "is_speech": np.zeros((rows, positions), bool),
        "lengths": np.ones(rows, np.int32),
    }
    dtype, clip_frames = np.dtype(data.dtype), frames if data.of_clips else None
    if data.of_clips:
        batch |= stack_rows([empty_clips(1, frames)] * rows)
        batch["frame_slot"] = np.full((rows, 1, frames), -1, np.int32)
    else:
        batch["features"] = np.zeros((rows, frames, data.feature_width), dtype)
        batch["frame_slot"] = np.full((rows, frames), -1, np.int32)
    for row, (record, example) in enumerate(group):
        for name, value in (example | speech_frames(record, example["frame_slot"], clip_frames, dtype)).items():
            batch[name][row, : len(value)] = value
        batch["lengths"][row] = len(example["tokens"])
    batch["frame_slot"] = np.where(batch["frame_slot"] < 0, positions, batch["frame_slot"])
    return [record for record, _ in group], batch
