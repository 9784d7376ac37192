"""Safe reading of fairseq checkpoints, without fairseq or omegaconf.

A fairseq `.pt` is a zip archive with a pickle (`data.pkl`) and one raw entry for each tensor storage. The pickle is
read by `convert.unpickle`, so that nothing in the file is ever imported or called.
"""

import contextlib
import dataclasses
import io
import zipfile
from collections.abc import Collection, Iterator
from typing import Any

import torch
from etils import epath

from convert.unpickle import DAMAGED, VALUES, StandIn, StandInUnpickler
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
NAMESPACE = "argparse.Namespace"

# Whatever fairseq and omegaconf name is a class of settings or bookkeeping; a stand-in serves for all of them.
ALLOWED = VALUES | STORAGE_DTYPES.keys() | {REBUILD_TENSOR, NAMESPACE, "typing.Any", "fairseq.", "omegaconf."}

# Far more than any checkpoint has; the reference's hold some ten thousand.
_MOST_SETTINGS = 500_000

# State that is no parameter: the optimizer does not count it.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclasses.dataclass(frozen=True)
class FairseqCheckpoint:
    """What a fairseq checkpoint holds of use.

    Attributes:
      model: parameter name -> tensor on the CPU, in the dtype of the file; all finite.
      cfg: settings as nested dict, list, str, int, float, bool and None, by fairseq's names. The flat `args`
        of old checkpoints are given as both cfg["model"] and cfg["task"].
      num_updates: updates made so far; None where the file does not say.
    """

    model: dict[str, torch.Tensor]
    cfg: dict[str, Any]
    num_updates: int | None


@dataclasses.dataclass(frozen=True)
class AdamMoments:
    """Adam's running means of some parameters: name -> tensor in the parameter's shape.

    Attributes:
      step: updates that they were gathered in.
      exp_avg, exp_avg_sq: of the gradients and of their squares.
    """

    step: int
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]


def read_fairseq(path: epath.PathLike) -> FairseqCheckpoint:
    """Reads the model and the settings of a fairseq checkpoint; optimizer state stays on disk.

    Raises InputError if the file is missing, damaged, no such checkpoint, names anything not allowed, or holds
    a weight that is not finite.
    """
    with _opened(path) as (content, archive):
        storages = _Storages(*archive)
        model = {name: storages.tensor(record) for name, record in content["model"].items()}
        # Few are the same tensor twice. Many names for one large tensor would take hours to look through.
        if (held := sum(tensor.nbytes for tensor in model.values())) > 2 * (size := epath.Path(path).stat().length):
            raise InputError(
                f"{path}: a file of {size} bytes whose tensors have {held}, expected each in its own bytes"
            )
        for name, tensor in model.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"{path}: {name} holds values that are not finite numbers")
        return FairseqCheckpoint(model, _settings(content, str(path)), _num_updates(content))


def read_moments(path: epath.PathLike, names: Collection[str]) -> AdamMoments | str:
    """Reads Adam's moments of the named parameters, or says in a few words why the file does not give them.

    fairseq stores them by the parameter's place among all that are trained, or, for training in half precision, as
    one vector for all of them. Both are matched to names by the order of the model and checked by shape or size.

    Raises InputError for the same files as read_fairseq does.
    """
    with _opened(path) as (content, archive):
        sizes = {name: torch.Size(record.args[2]) for name, record in content["model"].items()}
        optimizer = content.get("last_optimizer_state")
        if not isinstance(optimizer, dict) or not optimizer.get("state"):
            return "it holds no optimizer state"
        order = [index for group in optimizer["param_groups"] for index in group["params"]]
        parameters = [name for name in sizes if name.rpartition(".")[2] not in BUFFERS]
        # Either everything was handed to the optimizer, or only what was wanted here.
        for trained in (parameters, [name for name in parameters if name in names]):
            if order == [0] and len(trained) > 1:
                states = _flat_states(optimizer["state"][0], trained, sizes)
            elif len(order) == len(trained):
                states = {name: optimizer["state"].get(i) for i, name in zip(order, trained, strict=True)}
            else:
                continue
            if states is not None:
                return _moments({name: states.get(name) for name in names}, sizes, archive)
        return f"its optimizer state is for {len(order)} parameters, which cannot be told apart by the model's names"


def _flat_states(flat: dict, trained: list[str], sizes: dict[str, torch.Size]) -> dict[str, dict] | None:
    """Views into vectors over all parameters, as states of each of them; None if the sizes do not add up."""
    if flat["exp_avg"].args[2] != (sum(sizes[name].numel() for name in trained),):
        return None
    states, offset = {}, 0
    for name in trained:
        states[name] = flat | {"view": (offset, sizes[name])}
        offset += sizes[name].numel()
    return states


def _moments(states: dict[str, dict | None], sizes: dict[str, torch.Size], archive: tuple) -> AdamMoments | str:
    found = {"exp_avg": {}, "exp_avg_sq": {}}
    if without := [name for name, state in states.items() if not state]:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        return f"its optimizer has no state for {', '.join(sorted(without)[:3])}{more}"
    steps = [state.get("step") for state in states.values()]
    if not all(type(step) is int and step >= 0 for step in steps):
        return "its optimizer's states do not say how many updates they are of"
    if len(set(steps)) != 1:
        return f"its optimizer's states are of different updates: {min(steps)} to {max(steps)}"
    for kind, tensors in found.items():
        storages = _Storages(*archive)
        for name, state in states.items():
            tensor = storages.tensor(state[kind])
            if "view" in state:
                offset, size = state["view"]
                tensor = tensor[offset : offset + size.numel()].view(size)
            if tensor.shape != sizes[name]:
                return f"its {kind} of {name} has shape {list(tensor.shape)}, not {list(sizes[name])}"
            if not torch.isfinite(tensor).all():
                return f"its {kind} of {name} holds values that are not finite numbers"
            tensors[name] = tensor.float()
    return AdamMoments(steps[0], **found)


@contextlib.contextmanager
def _opened(path: epath.PathLike) -> Iterator[tuple[dict, tuple[zipfile.ZipFile, str]]]:
    """Yields the unpickled content and where its storages are: the archive and a folder in it.

    Raises InputError for what is no such checkpoint, also for what is found so while it is open.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a fairseq checkpoint")
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise InputError(f"{path}: not a PyTorch zip archive, expected a fairseq checkpoint of PyTorch >= 1.6")
            with zipfile.ZipFile(file) as archive:
                folder = _checked_folder(archive, path)
                data_pkl = archive.read(folder + "data.pkl")
                content = StandInUnpickler(io.BytesIO(data_pkl), str(path), ALLOWED).load()
                if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
                    raise InputError(f"{path}: not a fairseq checkpoint, expected a dict with the entry 'model'")
                if not all(isinstance(name, str) for name in content["model"]):
                    raise InputError(f"{path}: not a fairseq checkpoint, expected tensor names as strings")
                yield content, (archive, folder + "data/")
    except DAMAGED as error:
        raise InputError(f"{path}: not a readable fairseq checkpoint ({str(error) or type(error).__name__})") from error


def _checked_folder(archive: zipfile.ZipFile, path: epath.Path) -> str:
    """The folder of the archive that everything is in."""
    entries = archive.infolist()
    # PyTorch does not compress; to refuse what is compressed rules out small files that unpack to huge ones.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(f"{path}: a compressed zip archive, expected a fairseq checkpoint saved by PyTorch")
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


def _num_updates(content: dict) -> int | None:
    history = content.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else None
    number = last.get("num_updates") if isinstance(last, dict) else None
    return number if type(number) is int and number >= 0 else None


def _settings(content: dict, path: str) -> dict[str, Any]:
    plain = _Plain()
    if content.get("cfg") is not None:
        cfg = plain(content["cfg"])
    else:
        args = plain(content.get("args"))
        cfg = {"model": args, "task": args}
    if not isinstance(cfg, dict) or not isinstance(cfg.get("model"), dict):
        raise InputError(f"{path}: not a fairseq checkpoint, expected model settings in its 'cfg' or 'args'")
    return cfg


class _Plain:
    """Settings without stand-ins: omegaconf nodes and a Namespace by content, enum members by value.

    Raises ValueError for more of them than a checkpoint has: lists of references to lists of references, and so on,
    are small in the file, and without end to whoever shows or copies them.
    """

    def __init__(self):
        self._left = _MOST_SETTINGS

    def __call__(self, value: Any) -> Any:
        self._left -= 1 + (len(value) if isinstance(value, str | bytes | bytearray) else 0)
        if self._left < 0:
            raise ValueError(f"settings of more than {_MOST_SETTINGS} values and letters")
        return self._converted(value)

    def _converted(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            state = value.state if isinstance(value.state, dict) else {}
            if value.symbol == NAMESPACE:
                return self(state)
            for content in ("_content", "_val"):
                if content in state:
                    return self(state[content])
            return self(value.args[0]) if len(value.args) == 1 else value.symbol
        if isinstance(value, type):
            return value.symbol if issubclass(value, StandIn) else value.__name__
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value
