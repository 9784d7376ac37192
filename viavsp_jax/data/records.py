"""How shards are written and read: ArrayRecord files with TFDS metadata.

One dataset folder holds one kind of record (see viavsp_jax/data/examples.py) under one condition, say audio+video in
quiet, for any number of splits: `tfds.builder_from_directory(folder).as_data_source(split)` reads it too, with no
TensorFlow installed. Files are not compressed: encoder features shrink by 9 % only, videos not at all, and reading
takes twice as long.
"""

import bisect
import contextlib
import errno
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from tensorflow_datasets.core.utils.shard_utils import FileInstruction

from viavsp_jax.data.examples import FEATURES, TEXT_FIELDS, Example, Kind, width_of
from viavsp_jax.runtime.atomic import atomic_write, remove_leftovers, write_bytes
from viavsp_jax.runtime.errors import InputError

# Grain reads records one by one at random: groups of one record keep that from decoding its neighbours.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_SHARD_NAME = re.compile(r"(?P<name>\w+)-(?P<split>\w+)\.array_record-\d{5}-of-(?P<num>\d{5})")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
# What ArrayRecord, protobuf and TFDS raise on damaged bytes.
_BROKEN = (
    ValueError, LookupError, AttributeError, TypeError, RuntimeError, OSError, ImportError, DecodeError, ParseError,
)  # fmt: skip
_TFDS_FEATURES = "tensorflow_datasets.core.features."


def shard_path(folder: epath.PathLike, split: str, index: int, num_shards: int, kind: Kind = FEATURES) -> epath.Path:
    """Where shard `index` of `num_shards` of a split lies: `<dataset>-<split>.array_record-<index>-of-<num>`."""
    return epath.Path(folder) / f"{kind.name}-{split}.array_record-{index:05d}-of-{num_shards:05d}"


class ShardWriter:
    """Writes one ArrayRecord file, as a context; it gets its name at the end, and only if nothing failed."""

    def __init__(self, path: epath.PathLike, kind: Kind = FEATURES):
        self.path, self.kind, self.num_records, self._schema = path, kind, 0, None

    def __enter__(self) -> "ShardWriter":
        path = epath.Path(self.path)
        remove_leftovers(path)
        with contextlib.ExitStack() as stack:
            self._writer = ArrayRecordWriter(stack.enter_context(atomic_write(path)), _WRITER_OPTIONS)
            stack.callback(self._close)
            self._file = stack.pop_all()
        return self

    def write(self, example: Example) -> None:
        """Adds an example, texts as str. Raises InputError if it is not valid (see `Kind.validate`)."""
        self.kind.validate(example, self.path, self.num_records)
        self._schema = self._schema or self.kind.schema(width_of(example))
        self._writer.write(self._schema.serialize_example(example))
        self.num_records += 1

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def _close(self) -> None:
        try:
            self._writer.close()
        except RuntimeError as error:  # it says in words only what the system said by a number
            code = next((code for code in errno.errorcode if os.strerror(code) in str(error)), errno.EIO)
            raise OSError(code, os.strerror(code), os.fspath(self.path)) from error


def write_shard(path: epath.PathLike, examples: Iterable[Example], kind: Kind = FEATURES) -> int:
    """Writes one ArrayRecord file from examples at hand and returns their number (see `ShardWriter`)."""
    with ShardWriter(path, kind) as writer:
        for example in examples:
            writer.write(example)
    return writer.num_records


def complete_splits(folder: epath.PathLike, kind: Kind = FEATURES) -> dict[str, int]:
    """The splits of a folder whose shards are all there, each with its number of shards."""
    found: dict[tuple[str, int], int] = {}
    for file in epath.Path(folder).iterdir():
        match = _SHARD_NAME.fullmatch(file.name)
        if match and match["name"] == kind.name:
            key = (match["split"], int(match["num"]))
            found[key] = found.get(key, 0) + 1
    return {split: num for (split, num), count in sorted(found.items()) if count == num}


def write_metadata(folder: epath.PathLike, width: int | None, splits: Iterable[str], kind: Kind = FEATURES) -> None:
    """Writes dataset_info.json and features.json for the named splits, counting the records of their shards.

    `width` is that of the features, None for media. Raises InputError if a split has no complete set of shards.
    """
    folder, complete = epath.Path(folder), complete_splits(folder, kind)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, template=_TEMPLATE, dataset_name=kind.name, filetype_suffix="array_record"
    )
    infos = []
    for split in splits:
        if split not in complete:
            raise InputError(f"{folder}: split {split!r} has shards missing, expected all of them.")
        shards = [shard_path(folder, split, index, complete[split], kind) for index in range(complete[split])]
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[_num_records(shard) for shard in shards],
                num_bytes=sum(shard.stat().length for shard in shards),
                filename_template=template.replace(split=split),
            )
        )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=kind.name, version=tfds.core.Version(kind.version), data_dir=os.fspath(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=kind.schema(width), description=kind.description)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    with tempfile.TemporaryDirectory() as scratch:
        info.write_to_directory(scratch)
        for name in ("features.json", "dataset_info.json"):  # a folder with dataset_info.json is readable
            write_bytes(folder / name, (epath.Path(scratch) / name).read_bytes())


def _num_records(path: epath.Path) -> int:
    try:
        with contextlib.closing(ArrayRecordReader(os.fspath(path))) as reader:
            return reader.num_records()
    except RuntimeError as error:
        raise InputError(
            f"{os.fspath(path)}: a shard that cannot be read ({_first_line(error)}), expected a whole one: delete it, "
            "and it is written again."
        ) from error


class SplitSource(Sequence):
    """Random access to the examples of one split, for Grain; made by `open_split`.

    `source[i]` is a dict as viavsp_jax/data/examples.py lists it, arrays read-only, texts as str. Every record that is
    read is validated.
    """

    def __init__(self, folder: epath.PathLike, split: str, width: int | None, shard_lengths: Sequence[int], kind: Kind):
        self.folder, self.split, self.width, self.kind = os.fspath(folder), split, width, kind
        self._ends = list(itertools.accumulate(shard_lengths))
        num_shards = len(shard_lengths)
        self.shards = [os.fspath(shard_path(folder, split, index, num_shards, kind)) for index in range(num_shards)]
        # Given the lengths, the reader does not have to open every file first; in a text it would look for "[0:9]".
        whole = [FileInstruction(path, 0, num, num) for path, num in zip(self.shards, shard_lengths, strict=True)]
        self._records = ArrayRecordDataSource(whole)
        self._schema = kind.schema(width)

    @property
    def firsts(self) -> list[int]:
        """The first record of each shard that is not empty."""
        starts = [0, *self._ends[:-1]]
        return [start for start, end in zip(starts, self._ends, strict=True) if start < end]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """Raises InputError if the record is damaged or not valid, naming shard, record and clip."""
        index = index.__index__()
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} is out of range for {len(self)} records")
        index %= len(self)
        shard = bisect.bisect_right(self._ends, index)
        path, position = self.shards[shard], index - (self._ends[shard - 1] if shard else 0)
        try:
            example = self._schema.deserialize_example_np(self._records[index])
            example |= {name: example[name].decode() for name in TEXT_FIELDS}
        except _BROKEN as error:
            raise InputError(
                f"{path}: record {position} (record {index} of split {self.split!r} in {self.folder}) cannot "
                f"be read, expected an example of {self.kind.name}"
                f"{f' with features of width {self.width}' if self.width else ''} ({_first_line(error)})."
            ) from error
        self.kind.validate(example, path, position)
        return example

    def __repr__(self) -> str:
        return f"SplitSource(folder={self.folder!r}, split={self.split!r}, records={len(self)})"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def open_split(folder: epath.PathLike, split: str, kind: Kind = FEATURES) -> SplitSource:
    """Opens one split of a dataset folder for random access.

    Raises InputError if the folder, the split or one of its shards is missing, or the folder holds something else.
    """
    folder = epath.Path(folder)
    parent = folder.parent
    if not (parent.exists() and parent.is_dir()):  # one sentence, however many datasets are asked for
        raise InputError(f"{parent}: no such folder, expected one that holds datasets of the shards stage.")
    if not (folder.exists() and folder.is_dir()):  # of which in a bucket only the first says that it may not look
        raise InputError(f"{folder}: no such folder, expected a dataset written by the shards stage.")
    if not (folder / "dataset_info.json").exists() or not (folder / "features.json").exists():
        raise InputError(f"{folder}: no dataset_info.json or features.json, expected a dataset of the shards stage.")
    try:
        named = set(_class_names(json.loads((folder / "features.json").read_text(encoding="utf-8"))))
        if foreign := sorted(name for name in named if not name.startswith(_TFDS_FEATURES)):
            raise InputError(f"{folder}: features.json names {foreign[0]!r}, expected classes of TFDS only.")
        info = tfds.builder_from_directory(folder).info
    except _BROKEN as error:
        raise InputError(f"{folder}: its dataset metadata cannot be read ({_first_line(error)}).") from error
    width = _checked_width(folder, info, kind)
    if split not in info.splits:
        raise InputError(
            f"{folder}: no split {split!r}, expected one of {sorted(info.splits)}: give some clips of the corpus that "
            "split, and run the stages manifest and shards for it."
        )
    lengths = info.splits[split].shard_lengths
    for index, length in enumerate(lengths):
        if not (path := shard_path(folder, split, index, len(lengths), kind)).exists():
            raise InputError(f"{path}: shard named by dataset_info.json is missing.")
        if length < 0:
            raise InputError(f"{path}: has {length} records, as dataset_info.json says, expected a number of them.")
    if not sum(lengths):
        raise InputError(f"{folder}: split {split!r} has no records.")
    return SplitSource(folder, split, width, lengths, kind)


def _class_names(features: Any) -> Iterator[str]:
    """All classes that a features.json names; TFDS imports their modules, whatever these are."""
    if isinstance(features, dict):
        for name in ("pythonClassName", "python_class_name", "type"):
            if name in features:
                yield str(features[name])
    for part in features.values() if isinstance(features, dict) else features if isinstance(features, list) else ():
        yield from _class_names(part)


def _checked_width(folder: epath.Path, info: tfds.core.DatasetInfo, kind: Kind) -> int | None:
    """The width of the features there, after a look at whether the metadata are of this kind."""
    if (info.name, str(info.version)) != (kind.name, kind.version):
        raise InputError(
            f"{folder}: holds dataset {info.name!r} version {info.version}, expected {kind.name!r} "
            f"version {kind.version}; write it again with the shards stage."
        )
    try:
        width = width_of(info.features)
    except (LookupError, AttributeError, TypeError):
        width = None
    if info.features.to_json() != kind.schema(width).to_json():
        raise InputError(f"{folder}: features.json is not that of {kind.name} {kind.version}.")
    return width
