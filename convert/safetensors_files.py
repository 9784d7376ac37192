"""A model as safetensors files: which of a folder transformers reads, and writing some, one in memory at a time."""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from viavsp_jax.runtime.errors import InputError

WHOLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
# What transformers saves when a model is trained in parts, and then reads before anything else.
PARTS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")

# One file is in memory at a time, twice: as arrays and as bytes.
FILE_BYTES = 512 * 2**20

# What transformers and peft expect in the header of a file.
HEADER = {"format": "pt"}

# By their names in the header.
DTYPES = {
    "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of an open file."""

    file: Any
    name: str

    def header(self) -> Any:
        """Has get_shape() and get_dtype(), and gives rows when it is indexed."""
        return self.file.get_slice(self.name)

    def read(self) -> np.ndarray:
        """All of it, as stored."""
        return self.file.get_tensor(self.name)


def refuse_adapter(folder: pathlib.Path) -> None:
    """InputError if transformers would put an adapter on top of the weights of a folder, or of another model's."""
    if (folder / ADAPTER).is_file():
        raise InputError(
            f"{folder} holds an adapter ({ADAPTER}), which transformers puts on top of the weights: write the model of "
            "peft's AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload() to a new folder with "
            f"save_pretrained and give that, or remove {ADAPTER} if the adapter is in the weights already"
        )


def open_files(folder: pathlib.Path) -> dict[str, Stored]:
    """All tensors by name in the files that transformers' from_pretrained would choose in a folder.

    That is model.safetensors; without it, all files that the index names, of which a later one goes before an earlier
    one. Raises InputError when there is neither, or a file is missing or damaged.
    """
    present = sorted(os.listdir(folder))
    if parts := [name for name in present if PARTS.fullmatch(name)]:
        raise InputError(
            f"{folder} holds a model that was saved in parts ({parts[0]}): load it with transformers "
            "(AutoModelForCausalLM.from_pretrained) and write it to a new folder with save_pretrained"
        )
    if not (names := named_files(folder, WHOLE, INDEX)):
        raise InputError(_without_weights(folder, present))
    stored = {}
    for name in names:
        file = opened(folder / name)
        stored |= {key: Stored(file, key) for key in file.keys()}
    return stored


def named_files(folder: pathlib.Path, whole: str, index: str) -> list[str]:
    """The file `whole` of a folder or, without it, those that `index` names, in the order in which they are read.

    Neither is there: none. Raises InputError when a file is missing that the index names.
    """
    if (folder / whole).is_file():
        return [whole]
    if not (folder / index).is_file():
        return []
    names = _names_in_index(folder / index, whole.rpartition(".")[2])
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(f"{folder} lacks files that its index names: {', '.join(missing)}")
    return names


def opened(path: pathlib.Path, framework: str = "np") -> safe_open:
    """A safetensors file, for tensors of NumPy or of PyTorch (pt). Raises InputError if it cannot be read."""
    try:
        return safe_open(path, framework)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file, or damaged: {error}") from None


def _names_in_index(index: pathlib.Path, kind: str) -> list[str]:
    """The files that an index names, in the order in which transformers reads them."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if os.path.basename(name) != name or not name.endswith(f".{kind}")]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{index} is not an index of {kind} files: {error!r}") from None
    if outside:
        raise InputError(f"{index} names {outside[0][:99]!r}, expected names of {kind} files beside it")
    return names


def _without_weights(folder: pathlib.Path, present: list[str]) -> str:
    """What to say of a folder where transformers finds no safetensors, or none without being told which."""
    others = [name for name in present if name.endswith((".safetensors", ".bin", ".gguf", ".pt", ".pth"))]
    if not others:
        return f"{folder} holds no {WHOLE} and no {INDEX}"
    how = "AutoModelForCausalLM.from_pretrained"
    if others[0].startswith("model.") and others[0].count(".") > 1:
        how += f" with variant={others[0].split('.')[1]!r}"
    elif others[0].endswith(".gguf"):
        how += f" with gguf_file={others[0]!r}"
    kinds = "*.bin only" if all(name.endswith(".bin") for name in others) else f"{others[0]}, but not as {WHOLE}"
    return (
        f"{folder} holds its weights as {kinds}, expected safetensors: load it with transformers ({how}) and write it "
        "again with save_pretrained"
    )


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of an export, read when it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def files(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """In order, of at most FILE_BYTES or one piece each."""
    groups, size = [[]], 0
    for piece in pieces:
        size += piece.num_bytes
        if groups[-1] and size > FILE_BYTES:
            groups, size = [*groups, []], piece.num_bytes
        groups[-1].append(piece)
    return groups


def write(folder: pathlib.Path, pieces: list[Piece]) -> None:
    """Writes model.safetensors, or several files and their index."""
    groups, index = files(pieces), {}
    with tqdm(total=len(pieces), desc="writing", unit="tensor") as progress:
        for number, group in enumerate(groups, 1):
            several = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            name, values = several if len(groups) > 1 else WHOLE, {}
            for piece in group:
                values[piece.name] = np.asarray(piece.read(), order="C")
                progress.update()
            save_file(values, folder / name, HEADER)
            index |= dict.fromkeys(values, name)
            del values  # before those of the next file are read
    if len(groups) > 1:
        total = {"total_size": sum(piece.num_bytes for piece in pieces)}
        text = json.dumps({"metadata": total, "weight_map": index}, indent=2)
        (folder / INDEX).write_text(text, encoding="utf-8")
