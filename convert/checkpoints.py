"""Safe reading of fairseq checkpoints: nothing in the file is ever imported or called.

A fairseq `.pt` is a zip archive with a pickle (`data.pkl`) and one raw entry for each tensor storage. The
pickle names classes and functions; here each of them is replaced by an inert stand-in that only records its
arguments, and a name that is not on the allow-list is refused.
"""

import dataclasses
import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict, defaultdict
from typing import Any, ClassVar

import torch
from etils import epath

from viavsp_jax.errors import InputError

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
NAMESPACE = "argparse.Namespace"

# The only real classes: a pickle stores items into them, and neither they nor a method of theirs can be
# altered from a pickle (they are immutable C types).
CONTAINERS = {"collections.OrderedDict": OrderedDict, "collections.defaultdict": defaultdict}
STAND_INS = (
    {REBUILD_TENSOR, NAMESPACE, "typing.Any", "_codecs.encode"}
    | STORAGE_DTYPES.keys()
    | {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")}
    | {"numpy.dtype", "numpy.ndarray"}
    | {f"builtins.{name}" for name in "bool bytes dict float int list long set str tuple".split()}
)
# Whatever these packages name is a class of settings or bookkeeping; a stand-in serves for all of them.
STAND_IN_PACKAGES = ("fairseq.", "omegaconf.")

# What a damaged or hostile file makes the zip reader, the unpickler or the tensor views raise.
DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, LookupError, TypeError, ValueError,
    AttributeError, ArithmeticError, MemoryError, RuntimeError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FairseqCheckpoint:
    """What a fairseq checkpoint holds of use.

    Attributes:
      model: parameter name -> tensor on the CPU, in the dtype of the file.
      cfg: settings as nested dict, list, str, int, float, bool and None, by fairseq's names. The flat `args`
        of old checkpoints are given as both cfg["model"] and cfg["task"].
    """

    model: dict[str, torch.Tensor]
    cfg: dict[str, Any]


def read_fairseq(path: epath.PathLike) -> FairseqCheckpoint:
    """Reads the model and the settings of a fairseq checkpoint, without fairseq or omegaconf.

    Only the model's tensors are read; optimizer state stays on disk.

    Raises InputError if the file is missing, damaged, no such checkpoint, or names anything not allowed.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a fairseq checkpoint")
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path}: not a PyTorch zip archive, expected a fairseq checkpoint of PyTorch >= 1.6")
            with zipfile.ZipFile(file) as archive:
                return _read_archive(archive, str(path))
    except DAMAGED as error:
        raise InputError(f"{path}: not a readable fairseq checkpoint ({str(error) or type(error).__name__})") from error


def _read_archive(archive: zipfile.ZipFile, path: str) -> FairseqCheckpoint:
    # PyTorch does not compress; to refuse what is compressed rules out small files that unpack to huge ones.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise InputError(f"{path}: a compressed zip archive, expected a fairseq checkpoint saved by PyTorch")
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(f"{path}: not a PyTorch checkpoint, expected one data.pkl in the archive")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "byteorder" in archive.namelist() and archive.read(folder + "byteorder") != b"little":
        raise InputError(f"{path}: saved on a big-endian machine, expected little-endian tensors")
    content = _unpickled(archive.read(pickles[0]), path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path}: not a fairseq checkpoint, expected a dict with the entry 'model'")
    if not all(isinstance(name, str) for name in content["model"]):
        raise InputError(f"{path}: not a fairseq checkpoint, expected tensor names as strings")
    storages = _Storages(archive, folder + "data/")
    model = {name: storages.tensor(record) for name, record in content["model"].items()}
    return FairseqCheckpoint(model, _settings(content, path))


def _unpickled(data: bytes, path: str) -> Any:
    for opcode, argument, _ in pickletools.genops(data):
        # The unpickler makes room for all indices up to the one named: a few bytes could fill the memory.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
            raise pickle.UnpicklingError(f"memo index {argument} in a pickle of {len(data)} bytes")
    return StandInUnpickler(io.BytesIO(data), path).load()


class StandIn:
    """Takes the place of a class or function named by the pickle; a subclass is made for each name."""

    symbol: ClassVar[str]
    args: tuple
    state: Any

    def __new__(cls, *args: Any) -> "StandIn":
        self = super().__new__(cls)
        self.args = args
        self.state = None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


class StandInUnpickler(pickle.Unpickler):
    """Builds containers, and stand-ins for all else. Raises InputError for a name not on the allow-list."""

    def __init__(self, file: Any, path: str):
        super().__init__(file)
        self._path = path
        self._stand_ins: dict[str, type[StandIn]] = {}

    def find_class(self, module: str, name: str) -> type:
        # Pickle's protocol 2 writes Python 2's name of the module.
        symbol = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if symbol in CONTAINERS:
            return CONTAINERS[symbol]
        if symbol not in STAND_INS and not symbol.startswith(STAND_IN_PACKAGES):
            raise InputError(f"{self._path}: refused, the checkpoint names {symbol}, which is not on the allow-list")
        # Made anew for each file, so that nothing a pickle does to such a class outlives the reading.
        if symbol not in self._stand_ins:
            self._stand_ins[symbol] = type("StandIn", (StandIn,), {"symbol": symbol})
        return self._stand_ins[symbol]

    def persistent_load(self, pid: Any) -> Any:
        # ("storage", storage class, entry name, device, number of elements), read when its tensor is wanted.
        return pid


class _Storages:
    """Makes tensors from the archive's raw entries; tensors that shared a storage share it again."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self._archive = archive
        self._folder = folder
        self._loaded: dict[tuple[str, str], torch.Tensor] = {}

    def tensor(self, record: Any) -> torch.Tensor:
        """The tensor that a recorded call of _rebuild_tensor_v2 stands for."""
        if getattr(record, "symbol", None) != REBUILD_TENSOR:
            raise TypeError("'model' holds something that is not a tensor")
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


def _settings(content: dict, path: str) -> dict[str, Any]:
    if content.get("cfg") is not None:
        cfg = _plain(content["cfg"])
    else:
        args = _plain(content.get("args"))
        cfg = {"model": args, "task": args}
    if not isinstance(cfg, dict) or not isinstance(cfg.get("model"), dict):
        raise InputError(f"{path}: not a fairseq checkpoint, expected model settings in its 'cfg' or 'args'")
    return cfg


def _plain(value: Any) -> Any:
    """Settings without stand-ins: omegaconf nodes and a Namespace by content, enum members by value."""
    if isinstance(value, StandIn):
        state = value.state if isinstance(value.state, dict) else {}
        if value.symbol == NAMESPACE:
            return _plain(state)
        for content in ("_content", "_val"):
            if content in state:
                return _plain(state[content])
        return _plain(value.args[0]) if len(value.args) == 1 else value.symbol
    if isinstance(value, type):
        return value.symbol if issubclass(value, StandIn) else value.__name__
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
