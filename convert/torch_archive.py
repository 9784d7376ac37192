"""Safe reading of what torch.save writes: a zip archive with a pickle (`data.pkl`) and one raw entry for each storage.

The pickle is read by `convert.unpickle`, so that nothing in the file is ever imported or called.
"""

import contextlib
import io
import zipfile
from collections.abc import Collection, Iterator
from typing import Any

import torch
from etils import epath

from convert.unpickle import DAMAGED, VALUES, StandInUnpickler
from viavsp_jax.runtime.errors import InputError

STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"

# What plain values and tensors are made of.
TENSORS = VALUES | STORAGE_DTYPES.keys() | {REBUILD_TENSOR}


@contextlib.contextmanager
def opened(path: epath.PathLike, allowed: Collection[str], what: str) -> Iterator[tuple[Any, "Storages"]]:
    """Yields the unpickled content, with records in place of tensors, and what makes tensors of the records.

    Args:
      allowed: names that the pickle may mention, see StandInUnpickler.
      what: the file is expected to be, for errors.

    Raises InputError for what is no such file, also for what is found so while it is open.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a {what}")
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path}: not a PyTorch zip archive, expected a {what} of PyTorch >= 1.6")
            with zipfile.ZipFile(file) as archive:
                folder = _checked_folder(archive, path, what)
                data_pkl = archive.read(folder + "data.pkl")
                content = StandInUnpickler(io.BytesIO(data_pkl), str(path), allowed).load()
                yield content, Storages(archive, folder + "data/", str(path))
    except DAMAGED as error:
        raise InputError(f"{path}: not a readable {what} ({str(error) or type(error).__name__})") from error


def _checked_folder(archive: zipfile.ZipFile, path: epath.Path, what: str) -> str:
    """The folder of the archive that everything is in."""
    entries = archive.infolist()
    # PyTorch does not compress; to refuse what is compressed rules out small files that unpack to huge ones.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(f"{path}: a compressed zip archive, expected a {what} saved by PyTorch")
    # So does this for entries that share their bytes.
    if (declared := sum(entry.file_size for entry in entries)) > (size := path.stat().length):
        raise InputError(
            f"{path}: a file of {size} bytes whose entries declare {declared}, expected no more than it has"
        )
    pickles = [entry.filename for entry in entries if entry.filename.count("/") == 1]
    pickles = [name for name in pickles if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(f"{path}: not a PyTorch checkpoint, expected one data.pkl in the archive")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "byteorder" in archive.namelist() and archive.read(folder + "byteorder") != b"little":
        raise InputError(f"{path}: saved on a big-endian machine, expected little-endian tensors")
    return folder


def shape_of(record: Any) -> tuple[int, ...]:
    """The shape of the tensor that a record stands for; TypeError for one of something else."""
    if getattr(record, "symbol", None) != REBUILD_TENSOR:
        raise TypeError("it holds something that is not a tensor")
    shape = record.args[2]
    if type(shape) is not tuple or not all(type(size) is int for size in shape):
        raise TypeError("the shape of a tensor is no tuple of lengths")
    return shape


class Storages:
    """Makes tensors from the archive's raw entries; tensors that shared a storage share it again."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, path: str):
        self._archive = archive
        self._folder = folder
        self._path = path
        self._loaded: dict[tuple[str, str], torch.Tensor] = {}

    def tensors(self, records: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Those that records stand for, all finite. Raises InputError for others, and for many that share bytes."""
        read = {name: self.tensor(record) for name, record in records.items()}
        # Few are the same tensor twice. Many names for one large tensor would take hours to look through.
        held, size = sum(tensor.nbytes for tensor in read.values()), epath.Path(self._path).stat().length
        if held > 2 * size:
            raise InputError(
                f"{self._path}: a file of {size} bytes whose tensors have {held}, expected each in its own bytes"
            )
        for name, tensor in read.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"{self._path}: {name} holds values that are not finite numbers")
        return read

    def forget(self) -> None:
        """Keeps the storages that were read no longer."""
        self._loaded.clear()

    def tensor(self, record: Any) -> torch.Tensor:
        """The tensor that a recorded call of _rebuild_tensor_v2 stands for."""
        shape_of(record)
        storage_id, offset, size, stride = record.args[:4]
        kind, storage_class, entry, _, num_elements = storage_id
        storage = self._storage(storage_class.symbol, entry)
        tensor = storage.as_strided(size, stride, offset)
        # Zero strides could make a tensor of any size out of one element.
        if kind != "storage" or num_elements != len(storage) or tensor.numel() > num_elements:
            raise ValueError(f"tensor storage {entry} is not as recorded")
        return tensor

    def _storage(self, storage_symbol: str, entry: str) -> torch.Tensor:
        key = (storage_symbol, entry)
        if key not in self._loaded:
            raw = bytearray(self._archive.read(self._folder + entry))
            self._loaded[key] = torch.frombuffer(raw, dtype=STORAGE_DTYPES[storage_symbol])
        return self._loaded[key]
