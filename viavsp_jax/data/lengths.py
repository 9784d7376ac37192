"""What records take of a row, known before the first update: a run does not end in the middle for one of them.

Few records are read. Of many the lists tell the lengths that the shards stage writes beside them: 1.28 million take ten
seconds. Where there are none, or they are those of other shards, all records are read.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence

import grain
import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from viavsp_jax.data.compression import Compression
from viavsp_jax.data.examples import Example
from viavsp_jax.data.packing import Size
from viavsp_jax.data.prompt import Prompt
from viavsp_jax.data.records import SplitSource
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.data.sources import LeftOut, compressions_of, count_fields, open_sources
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError, InputErrors

FILE = "too_long.jsonl"
_BLOCK = 50_000  # records whose counts, or transcripts, are handled at a time
_FEW = 4_000  # records that are read in seconds, from a bucket, too
_SHOWN = 3
_READ = grain.ReadOptions(num_threads=32, prefetch_buffer_size=64)


@dataclasses.dataclass(frozen=True)
class Records:
    """What decides how much of a row each record of a split takes."""

    ids: list[str]
    languages: list[tuple[str, str]]  # source, target
    transcripts: list[str]
    frames: np.ndarray  # int[N]
    segments: np.ndarray  # int[N], by the clustering and the compression that make most of them


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a shard folder that training reads."""

    name: str  # of the shard folder, as in the config
    source: SplitSource
    records: Records
    instructions: np.ndarray  # int[N], the tokens around each record's speech but for its label


@dataclasses.dataclass(frozen=True)
class TooLong:
    """A record that does not fit a row, and all that is too small for it."""

    name: str  # of the shard folder, as in the config
    split: str
    id: str
    sizes: list[Size]

    def __str__(self) -> str:
        return f"record {self.id} of {self.name} ({self.split}) {self.reason()}"

    def reason(self) -> str:
        return ", ".join(map(str, self.sizes))


def check(data: DataSettings, prompt: Prompt, splits: Sequence[Split], workdir: epath.PathLike | None) -> LeftOut:
    """Looks at the lengths of all records of `splits`, those that training and validation read.

    Those that do not fit a row are listed in `too_long.jsonl` of the work folder, if one is given. Returns what is
    left out: all of them, by `config.data.too_long` "skip".

    Raises InputError if there are some and none is to be left out, or all of those of training or validation are.
    """
    found = [one for split in splits for one in _too_long(data, prompt, split)]
    _write(workdir, found)
    if found and data.too_long == "error":
        raise InputError(_complaint(found, sum(len(split.source) for split in splits), workdir))
    problems = []
    for kind in dict.fromkeys(split.source.split for split in splits):
        total = sum(len(split.source) for split in splits if split.source.split == kind)
        out = [one for one in found if one.split == kind]
        if len(out) == total:
            problems.append(f"none of the {total} records of split {kind!r} fits a row, the first: {out[0]}")
    if problems:
        raise InputErrors(problems)
    left_out: dict[tuple[str, str], set[str]] = {}
    for one in found:
        left_out.setdefault((one.name, one.split), set()).add(one.id)
    return {key: frozenset(ids) for key, ids in left_out.items()}


def check_languages(data: DataSettings, prompt: Prompt, name: str, split: str) -> None:
    """InputError if a shard folder has no such split, or the split a record of a language that is not known."""
    for source in open_sources(data, (name,), split):
        listed = read_lengths(source, count_fields(data, name, source.split), compressions_of(data, name))
        instructions(prompt, listed)


def read_lengths(source: SplitSource, counts: Sequence[str], compressions: Sequence[Compression]) -> Records:
    """The lengths of all records of a split.

    `counts` are the fields with cluster counts by which frames may be averaged, `compressions` the ways to do it.
    """
    listed = _from_lists(source, counts, compressions) if len(source) > _FEW else None
    if listed is None:
        return _from_records(source, counts, compressions)
    for _ in grain.MapDataset.source(source.firsts).map(source.__getitem__).to_iter_dataset(_READ):
        pass  # a shard that is damaged cannot even be opened, mostly
    if without := [id for id, text in zip(listed.ids, listed.transcripts, strict=True) if not text.strip()]:
        raise InputError(
            f"{source.folder}: record {without[0]} of split {source.split!r} has an empty transcript, and so have "
            f"{len(without) - 1} others: take them out of the corpus and write the shards again"
        )
    return listed


def _too_long(data: DataSettings, prompt: Prompt, split: Split) -> list[TooLong]:
    shape, of_clips = data.row, data.of_clips
    name, source, records = split.name, split.source, split.records
    start = split.instructions + records.segments
    # What is left for the label, whose last token is predicted, never read.
    room = np.minimum(shape.labels, min(shape.positions, shape.window) - start + 1)
    labels = _label_lengths(prompt, records.transcripts, room)
    frames = shape.clip_frames if of_clips else shape.frames
    (indices,) = np.nonzero((labels > room) | (records.frames > frames))
    return [
        TooLong(name, source.split, records.ids[i], shape.too_small(
            int(records.frames[i]), int(start[i] + labels[i]) - 1, int(labels[i]), of_clips
        ))
        for i in indices
    ]  # fmt: skip


def instructions(prompt: Prompt, records: Records) -> np.ndarray:
    """int[N], the tokens around each record's speech but for its label. Raises InputError naming the record."""
    sizes: dict[tuple[str, str], int] = {}
    for id, languages in zip(records.ids, records.languages, strict=True):
        if languages not in sizes:
            try:
                sizes[languages] = len(prompt.instruction(*languages)) + len(prompt.after)
            except InputError as error:
                raise InputError(f"record {id}: {error}") from error
    return np.array([sizes[languages] for languages in records.languages])


def _label_lengths(prompt: Prompt, transcripts: Sequence[str], room: np.ndarray) -> np.ndarray:
    """int[N], the label tokens of each record: their true number where it may be more than `room`, else no fewer.

    A language model's tokenizer makes at most one token of a byte, and one of what it puts before a text.
    """
    labels = np.array([len(text.encode()) for text in transcripts]) + 3
    (unsure,) = np.nonzero(labels > room)
    with tqdm(total=len(unsure), desc="label lengths", unit="clip", delay=3, disable=jax.process_index() > 0) as bar:
        for block in (unsure[start : start + _BLOCK] for start in range(0, len(unsure), _BLOCK)):
            labels[block] = prompt.label_lengths([transcripts[i] for i in block])
            bar.update(len(block))
    return labels


def _from_lists(source: SplitSource, counts: Sequence[str], compressions: Sequence[Compression]) -> Records | None:
    """By the lists beside the shards; None if one is missing or damaged, or they are not those of these shards."""
    folder = epath.Path(source.folder)
    paths = [folder / f"{source.split}.{name}" for name in ("tsv", "wrd", *counts)]
    if not all(path.exists() for path in paths) or not _as_written(source):
        return None
    try:
        (_, *clips), transcripts, *runs = (path.read_bytes().decode().removesuffix("\n").split("\n") for path in paths)
        if any(len(lines) != len(source) for lines in (clips, transcripts, *runs)):
            return None
        names = [clip.partition("\t")[0].rsplit("-", 2) for clip in clips]
        pairs = {(source, target): (source, target) for _, source, target in names}  # one of each is kept
        lengths = [_run_lengths(lines, compressions, f"{folder.name}, {source.split}") for lines in runs]
    except ValueError:  # not UTF-8, no languages, no numbers
        return None
    frames, segments = zip(*lengths, strict=True)
    ids, languages = [id for id, *_ in names], [pairs[source, target] for _, source, target in names]
    return Records(ids, languages, transcripts, frames[0], np.max(segments, 0))


def _as_written(source: SplitSource) -> bool:
    """Whether the shards have the size that they had when the lists were written, in steps of 64 KiB."""
    splits = json.loads((epath.Path(source.folder) / "dataset_info.json").read_bytes())["splits"]
    (recorded,) = (int(split.get("numBytes", 0)) for split in splits if split["name"] == source.split)
    return sum(epath.Path(path).stat().length for path in source.shards) == recorded


def _run_lengths(lines: Sequence[str], compressions: Sequence[Compression], desc: str) -> tuple[np.ndarray, np.ndarray]:
    """(int[N] sums of the counts in each line, int[N] positions). Raises ValueError if they are no numbers."""
    sums, positions = [], []
    with tqdm(total=len(lines), desc=desc, unit="clip", delay=3, disable=jax.process_index() > 0) as bar:
        for block in (lines[start : start + _BLOCK] for start in range(0, len(lines), _BLOCK)):
            runs = np.array([line.count(" ") + 1 for line in block])
            text = " ".join(block)
            if not (text.isascii() and text.replace(" ", "").isdecimal()):
                raise ValueError("expected numbers")
            counts = np.fromstring(text, np.int64, sep=" ")
            if len(counts) != runs.sum():
                raise ValueError("expected a number between two spaces")
            sums.append(np.add.reduceat(counts, np.cumsum(runs) - runs))
            positions.append(_most_positions(counts, runs, compressions))
            bar.update(len(block))
    return np.concatenate(sums), np.concatenate(positions)


def _most_positions(counts: np.ndarray, runs: np.ndarray, compressions: Sequence[Compression]) -> np.ndarray:
    """int[N], by the one that makes most of a record; see `Compression.positions`."""
    return np.max([one.positions(counts, runs) for one in compressions], 0)


def _from_records(source: SplitSource, counts: Sequence[str], compressions: Sequence[Compression]) -> Records:
    """By the records, all of which are read. Raises InputError if one of them is damaged."""

    def lengths(record: Example) -> tuple:
        runs = np.array([len(record[name]) for name in counts])
        segments = _most_positions(np.concatenate([record[name] for name in counts]), runs, compressions).max()
        languages = record["source_language"], record["target_language"]
        return record["id"], languages, record["transcript"], int(record[counts[0]].sum()), segments

    desc = f"lengths of {epath.Path(source.folder).name}, {source.split}"
    records: Iterable[tuple] = tqdm(
        grain.MapDataset.source(source).map(lengths).to_iter_dataset(_READ),
        total=len(source), desc=desc, unit="clip", delay=3, disable=jax.process_index() > 0,
    )  # fmt: skip
    ids, languages, transcripts, frames, segments = map(list, zip(*records, strict=True))
    return Records(ids, languages, transcripts, np.array(frames), np.array(segments))


def _write(workdir: epath.PathLike | None, found: Sequence[TooLong]) -> None:
    """Lists what does not fit; where all fits there is no list."""
    if workdir is None or jax.process_index():
        return
    path = epath.Path(workdir) / FILE
    lines = [{"name": one.name, "split": one.split, "id": one.id, "reason": one.reason()} for one in found]
    if lines:
        write_bytes(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode())
    elif path.exists():
        path.unlink(missing_ok=True)


def _complaint(found: Sequence[TooLong], total: int, workdir: epath.PathLike | None) -> str:
    needed: dict[str, int] = {}
    for size in (size for one in found for size in one.sizes):
        needed[size.option] = max(needed.get(size.option, 0), size.of_row)
    row = ", ".join(f"config.data.row.{option}={size}" for option, size in needed.items())
    first = "; ".join(map(str, found[:_SHOWN])) + "; …" * (len(found) > _SHOWN)
    listed = "" if workdir is None else f"; {epath.Path(workdir) / FILE} lists all of them"
    return (
        f"{len(found)} of {total} records {'does' if len(found) == 1 else 'do'} not fit a row: {first}: expected a row "
        f"that holds them all, which needs {row}, or config.data.too_long=skip, which leaves them out{listed}"
    )
