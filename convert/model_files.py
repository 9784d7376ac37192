"""The weights of a Hugging Face model, as safetensors or as pickles (*.bin): their shapes, and some of them.

Pickles are read as convert/torch_archive.py does: nothing in them is run.
"""

import os
import pathlib

import torch
from safetensors import SafetensorError

from convert.names import Shapes
from convert.safetensors_files import INDEX, WHOLE, named_files, opened
from convert.torch_archive import TENSORS, shape_of
from convert.torch_archive import opened as opened_archive
from viavsp_jax.runtime.errors import InputError

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def weights_files(source: pathlib.Path) -> list[pathlib.Path]:
    """The file `source`, or those of a folder that transformers reads: safetensors before pickles.

    Raises InputError when there are none.
    """
    if not source.is_dir():
        return [source]
    for whole, index in ((WHOLE, INDEX), (BIN, BIN_INDEX)):
        if names := named_files(source, whole, index):
            return [source / name for name in names]
    others = sorted(name for name in os.listdir(source) if name.endswith((".safetensors", ".bin", ".pt", ".pth")))
    instead = f"; to convert {others[0]}, give that file" if others else ""
    raise InputError(f"{source} holds no {WHOLE} and no {BIN}, nor an index of several such files{instead}")


def shapes_in(file: pathlib.Path) -> Shapes:
    """The shapes of all tensors of a file, by name; no weight is read. Raises InputError if it is damaged."""
    if file.suffix == ".safetensors":
        stored = opened(file, "pt")
        return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
    with opened_archive(file, TENSORS, "file of PyTorch weights") as (content, _):
        return {name: shape_of(record) for name, record in _records(content, file).items()}


def read_tensors(file: pathlib.Path, names: list[str]) -> dict[str, torch.Tensor]:
    """Some tensors of a file, as stored. Raises InputError if it is damaged, or one cannot be had."""
    if file.suffix == ".safetensors":
        stored = opened(file, "pt")
        try:
            return {name: stored.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise InputError(f"{file} is not a safetensors file, or damaged: {error}") from None
    with opened_archive(file, TENSORS, "file of PyTorch weights") as (content, storages):
        records = _records(content, file)
        return storages.tensors({name: records[name] for name in names})


def _records(content: object, file: pathlib.Path) -> dict:
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{file}: not the weights of a model, expected a dict of tensors by name")
    return content
