"""Writes a model as safetensors files that transformers reads, with one file in memory at a time."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

# One file is in memory at a time, twice: as arrays and as bytes.
FILE_BYTES = 512 * 2**20

# What transformers and peft expect in the header of a file.
HEADER = {"format": "pt"}


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
            name, values = several if len(groups) > 1 else "model.safetensors", {}
            for piece in group:
                values[piece.name] = np.asarray(piece.read(), order="C")
                progress.update()
            save_file(values, folder / name, HEADER)
            index |= dict.fromkeys(values, name)
            del values  # before those of the next file are read
    if len(groups) > 1:
        total = {"total_size": sum(piece.num_bytes for piece in pieces)}
        text = json.dumps({"metadata": total, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text)
