"""The example schema of the shards, and how they are written and read.

One dataset folder holds one kind of features (say, audio+video in quiet) for any number of splits, as
ArrayRecord files with TFDS metadata: `tfds.builder_from_directory(folder).as_data_source(split)` reads it
too, with no TensorFlow installed. An example is one clip (T frames, D encoder width, S runs of equal
clusters):

  id               text          the clip's name in the corpus
  features         float16[T, D] last-layer encoder features
  cluster_counts   int32[S]      lengths of the runs of equal clusters; they sum to T
  transcript       text          what is said
  source_language, target_language  text, e.g. vi and vi

Arrays are stored as raw bytes: as lists of numbers (TFDS's default) a float16 record is twice as large, 60
times slower to write and 6 times slower to read. Files are not compressed: encoder features shrink by 9 %
only, and reading takes twice as long.
"""

import bisect
import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from viavsp_jax.data.atomic import atomic_write, write_bytes
from viavsp_jax.errors import InputError

DATASET_NAME = "viavsp"
SCHEMA_VERSION = "1.0.0"

# Grain reads records one by one at random: groups of one record keep that from decoding its neighbours.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_TEXT_FIELDS = ("id", "transcript", "source_language", "target_language")
_SHARD_NAME = re.compile(rf"{DATASET_NAME}-(?P<split>\w+)\.array_record-\d{{5}}-of-(?P<num>\d{{5}})")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
# What ArrayRecord, protobuf and TFDS raise on damaged bytes.
_BROKEN = (ValueError, LookupError, AttributeError, TypeError, RuntimeError, OSError, DecodeError, ParseError)

Example = dict[str, Any]


def features_schema(width: int) -> tfds.features.FeaturesDict:
    """The TFDS features of an example whose encoder features are `width` wide."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "features": tfds.features.Tensor(shape=(None, width), dtype=np.float16, encoding="bytes"),
            "cluster_counts": tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes"),
            "transcript": tfds.features.Text(),
            "source_language": tfds.features.Text(),
            "target_language": tfds.features.Text(),
        }
    )


def validate(example: Mapping[str, Any], path: epath.PathLike, index: int) -> None:
    """Checks what the schema cannot say: finite features, counts that cover the frames, a transcript.

    Args:
      example: an example as in the module's docstring, texts as str.
      path: the shard it is in, for the message.
      index: its place in that shard, for the message.

    Raises:
      InputError: naming shard, record and clip.
    """
    features, counts = example["features"], example["cluster_counts"]
    where = f"{os.fspath(path)}: record {index} (id {example['id']!r})"
    if features.ndim != 2 or not len(features):
        raise InputError(f"{where} has features of shape {features.shape}, expected [frames, width].")
    if counts.ndim != 1 or counts.min(initial=1) < 1 or counts.sum() != len(features):
        raise InputError(
            f"{where} has cluster counts that sum to {counts.sum()}, the smallest {counts.min(initial=1)}, "
            f"expected positive counts that sum to its {len(features)} frames."
        )
    # The exponent bits of float16 are all ones for inf and NaN only; 8 times faster than np.isfinite.
    if (np.ascontiguousarray(features).view(np.uint16) & 0x7C00).max() == 0x7C00:
        raise InputError(f"{where} has features that are not finite numbers.")
    if not example["transcript"].strip():
        raise InputError(f"{where} has an empty transcript.")


def shard_path(folder: epath.PathLike, split: str, index: int, num_shards: int) -> epath.Path:
    """Where shard `index` of `num_shards` of a split lies: `viavsp-<split>.array_record-<index>-of-<num>`."""
    return epath.Path(folder) / f"{DATASET_NAME}-{split}.array_record-{index:05d}-of-{num_shards:05d}"


class ShardWriter:
    """Writes one ArrayRecord file, as a context; it gets its name at the end, and only if nothing failed."""

    def __init__(self, path: epath.PathLike):
        self.path, self.num_records, self._schema = path, 0, None

    def __enter__(self) -> "ShardWriter":
        path = epath.Path(self.path)
        for stale in path.parent.glob(f".{path.name}.*.tmp"):  # left by a process that was killed
            stale.unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            self._writer = ArrayRecordWriter(stack.enter_context(atomic_write(path)), _WRITER_OPTIONS)
            stack.callback(self._writer.close)
            self._file = stack.pop_all()
        return self

    def write(self, example: Example) -> None:
        """Adds an example, texts as str. Raises InputError if it is not valid (see `validate`)."""
        validate(example, self.path, self.num_records)
        self._schema = self._schema or features_schema(example["features"].shape[1])
        self._writer.write(self._schema.serialize_example(example))
        self.num_records += 1

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def write_shard(path: epath.PathLike, examples: Iterable[Example]) -> int:
    """Writes one ArrayRecord file from examples at hand and returns their number (see `ShardWriter`)."""
    with ShardWriter(path) as writer:
        for example in examples:
            writer.write(example)
    return writer.num_records


def complete_splits(folder: epath.PathLike) -> dict[str, int]:
    """The splits of a folder whose shards are all there, each with its number of shards."""
    found: dict[tuple[str, int], int] = {}
    for file in epath.Path(folder).iterdir():
        if match := _SHARD_NAME.fullmatch(file.name):
            key = (match["split"], int(match["num"]))
            found[key] = found.get(key, 0) + 1
    return {split: num for (split, num), count in sorted(found.items()) if count == num}


def write_metadata(folder: epath.PathLike, width: int, splits: Iterable[str]) -> None:
    """Writes dataset_info.json and features.json for the named splits, counting the records of their shards.

    Raises:
      InputError: a split has no complete set of shards.
    """
    folder, complete = epath.Path(folder), complete_splits(folder)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, template=_TEMPLATE, dataset_name=DATASET_NAME, filetype_suffix="array_record"
    )
    infos = []
    for split in splits:
        if split not in complete:
            raise InputError(f"{folder}: split {split!r} has shards missing, expected all of them.")
        shards = [shard_path(folder, split, index, complete[split]) for index in range(complete[split])]
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[_num_records(shard) for shard in shards],
                num_bytes=sum(shard.stat().length for shard in shards),
                filename_template=template.replace(split=split),
            )
        )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=DATASET_NAME,
        version=tfds.core.Version(SCHEMA_VERSION),
        data_dir=os.fspath(folder),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=features_schema(width), description="Encoder features of talking faces."
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    with tempfile.TemporaryDirectory() as scratch:
        info.write_to_directory(scratch)
        for name in ("features.json", "dataset_info.json"):  # a folder with dataset_info.json is readable
            write_bytes(folder / name, (epath.Path(scratch) / name).read_bytes())


def _num_records(path: epath.Path) -> int:
    reader = ArrayRecordReader(os.fspath(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


class SplitSource(Sequence):
    """Random access to the examples of one split, for Grain; made by `open_split`.

    `source[i]` is a dict as in the module's docstring, arrays read-only, texts as str. Every record that is
    read is validated.
    """

    def __init__(self, folder: epath.PathLike, split: str, width: int, shard_lengths: Sequence[int]):
        self.folder, self.split, self.width = os.fspath(folder), split, width
        self._ends = list(itertools.accumulate(shard_lengths))
        num_shards = len(shard_lengths)
        self._shards = [os.fspath(shard_path(folder, split, index, num_shards)) for index in range(num_shards)]
        # Given the ranges, the reader does not have to open every file first.
        ranges = [f"{path}[0:{num}]" for path, num in zip(self._shards, shard_lengths, strict=True)]
        self._records = ArrayRecordDataSource(ranges)
        self._schema = features_schema(width)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """Raises InputError if the record is damaged or not valid, naming shard, record and clip."""
        index = index.__index__()
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} is out of range for {len(self)} records")
        index %= len(self)
        shard = bisect.bisect_right(self._ends, index)
        path, position = self._shards[shard], index - (self._ends[shard - 1] if shard else 0)
        try:
            example = self._schema.deserialize_example_np(self._records[index])
            example |= {name: example[name].decode() for name in _TEXT_FIELDS}
        except _BROKEN as error:
            raise InputError(
                f"{path}: record {position} (record {index} of split {self.split!r} in {self.folder}) cannot "
                f"be read, expected an example with features of width {self.width} ({_first_line(error)})."
            ) from error
        validate(example, path, position)
        return example

    def __repr__(self) -> str:
        return f"SplitSource(folder={self.folder!r}, split={self.split!r}, records={len(self)})"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def open_split(folder: epath.PathLike, split: str) -> SplitSource:
    """Opens one split of a dataset folder for random access.

    Raises:
      InputError: the folder, the split or one of its shards is missing, or the folder holds something else.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a dataset written by the shards stage.")
    if not (folder / "dataset_info.json").exists() or not (folder / "features.json").exists():
        raise InputError(f"{folder}: no dataset_info.json or features.json, expected a dataset of the shards stage.")
    try:
        info = tfds.builder_from_directory(folder).info
    except _BROKEN as error:
        raise InputError(f"{folder}: its dataset metadata cannot be read ({_first_line(error)}).") from error
    _check_schema(folder, info)
    if split not in info.splits:
        raise InputError(f"{folder}: no split {split!r}, expected one of {sorted(info.splits)}.")
    lengths = info.splits[split].shard_lengths
    for index in range(len(lengths)):
        if not (path := shard_path(folder, split, index, len(lengths))).exists():
            raise InputError(f"{path}: shard named by dataset_info.json is missing.")
    if not sum(lengths):
        raise InputError(f"{folder}: split {split!r} has no records.")
    return SplitSource(folder, split, info.features["features"].shape[1], lengths)


def _check_schema(folder: epath.Path, info: tfds.core.DatasetInfo) -> None:
    if (info.name, str(info.version)) != (DATASET_NAME, SCHEMA_VERSION):
        raise InputError(
            f"{folder}: holds dataset {info.name!r} version {info.version}, expected {DATASET_NAME!r} "
            f"version {SCHEMA_VERSION}; write it again with the shards stage."
        )
    features = info.features
    shape = features["features"].shape if "features" in features else ()
    if len(shape) != 2 or features.to_json() != features_schema(shape[1]).to_json():
        raise InputError(f"{folder}: features.json is not that of {DATASET_NAME} {SCHEMA_VERSION}.")
