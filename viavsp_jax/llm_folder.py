"""The folder of a frozen language model, made by `python -m convert.from_hf`, read and written piece by piece.

It holds `config.json` and the tokenizer files of the Hugging Face model, `conversion.json` (source, sha256 of the
weights, dtype, version) and the weights: `params/` has one zarr (version 3) array for each of our paths, "." for "/",
a stack of layers as [N, ...]. A chunk belongs to one layer and ends with its CRC-32C. Every chunk is written, zeros
too, so that a missing one is known to be missing.
"""

import functools
import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterable
from types import EllipsisType
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath
from flax import traverse_util
from tqdm import tqdm

from viavsp_jax.llm_config import llama_config
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError, check_all
from viavsp_jax.runtime.paths import key_value_store

Tree = dict[str, Any]

# Larger matrices are cut, so that a host that holds a part of one reads little more than that part.
CHUNK_BYTES = 4 * 2**20
CODECS = ["bytes", "crc32c"]
# What weights may be stored as.
DTYPES = ("float32", "float16", "bfloat16")


def _spec(folder: epath.PathLike, path: str) -> dict[str, Any]:
    """Where an array lies, as tensorstore wants it; a missing chunk is an error instead of zeros."""
    return {
        "driver": "zarr3",
        "kvstore": key_value_store(epath.Path(folder) / "params" / path.replace("/", ".")),
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }


def _chunk_shape(shape: tuple[int, ...], width: int) -> list[int]:
    """Halves the longest side of one layer until it takes CHUNK_BYTES at most, at `width` bytes a value."""
    chunk = np.array(shape)
    while chunk.prod() * width > CHUNK_BYTES:
        longest = chunk.argmax()
        chunk[longest] = -(-chunk[longest] // 2)
    return chunk.tolist()


def _create(folder: epath.PathLike, path: str, stack: tuple[int, ...], layer: np.ndarray) -> tensorstore.TensorStore:
    """A new array of shape `stack` + `layer.shape`, not compressed: bfloat16 weights shrink by a tenth only."""
    metadata = {
        "shape": [*stack, *layer.shape],
        "data_type": layer.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [1] * len(stack) + _chunk_shape(layer.shape, layer.dtype.itemsize)},
        },
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    return tensorstore.open(_spec(folder, path) | {"metadata": metadata}, create=True).result()


def save_llm(
    folder: epath.PathLike, weights: Iterable[tuple[str, int | EllipsisType, np.ndarray]], conversion: dict[str, str]
) -> None:
    """Writes weights one after the other, and `conversion.json`.

    Args:
      folder: holds `config.json` already; weights left there by an interrupted conversion are replaced.
      weights: (path in the language model, layer in its stack or `...`, array [I, O], [V, D] or [D]), all layers of
        a path in order.
      conversion: what `conversion.json` says. The sha256 of all paths and their bytes is added to it, and the file
        comes last: it marks completion.
    """
    folder, layers = epath.Path(folder), llama_config(folder).num_layers
    (folder / "conversion.json").unlink(missing_ok=True)
    (folder / "params").rmtree(missing_ok=True)
    digest, current, array = hashlib.sha256(), None, None
    for path, index, value in weights:
        value = np.ascontiguousarray(value)
        if path != current:
            current, array = path, _create(folder, path, () if index is ... else (layers,), value)
            digest.update(path.encode())
        digest.update(value.reshape(-1).view(np.uint8))
        array[index].write(value).result()
        del value  # before the next one is made
    text = json.dumps(conversion | {"sha256": digest.hexdigest()}, indent=2)
    write_bytes(folder / "conversion.json", text.encode())


def read_conversion(folder: epath.PathLike) -> dict[str, str]:
    """`conversion.json` of a language-model folder: `source`, `sha256`, `dtype`, `version`."""
    folder = epath.Path(folder)
    llama_config(folder)
    path = folder / "conversion.json"
    if not path.exists():
        raise InputError(
            f"{folder} is not a converted language model: run python -m convert.from_hf "
            f"{shlex.quote(os.fspath(folder))} --output FOLDER once and give that folder"
        )
    try:
        conversion = json.loads(path.read_bytes())
        conversion = {name: conversion[name] for name in ("source", "sha256", "dtype", "version")}
        if conversion["dtype"] not in DTYPES:
            raise ValueError(f"dtype is {conversion['dtype']!r}")
        return conversion
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged, convert again: {error!r}") from None


def _result(future: tensorstore.Future, folder: epath.PathLike, path: str) -> Any:
    """What tensorstore opened or read; InputError names a weight that it could not."""
    try:
        return future.result()
    except ValueError as error:  # tensorstore raises no other
        reason = str(error).split(" [")[0]
        raise InputError(
            f"{folder}: the weight {path} cannot be read, convert again if it is missing or damaged ({reason})"
        ) from None


def _opened(folder: epath.PathLike, path: str) -> tensorstore.TensorStore:
    """A weight on disk; InputError where its chunks are not as `_create` makes them, but larger or compressed."""
    array = _result(tensorstore.open(_spec(folder, path)), folder, path)
    size = math.prod(array.chunk_layout.read_chunk.shape) * array.dtype.numpy_dtype.itemsize
    codecs = [codec["name"] for codec in array.codec.to_json()["codecs"]]
    if size > CHUNK_BYTES or codecs != CODECS:
        raise InputError(
            f"{folder}: the weight {path} has chunks of {size} bytes by {', '.join(codecs)}, "
            f"expected at most {CHUNK_BYTES} by {', '.join(CODECS)}"
        )
    return array


def _read(array: tensorstore.TensorStore, folder: epath.PathLike, path: str) -> np.ndarray:
    """All of an array, or of a part; InputError where there is not the memory that its shape asks for."""
    try:
        np.empty(array.shape, array.dtype.numpy_dtype)  # tensorstore would end the process
    except (ValueError, MemoryError):
        raise InputError(f"{folder}: the weight {path} is of shape {array.shape}, which is too large") from None
    return _result(array.read(), folder, path)


def read_layer(folder: epath.PathLike, path: str, index: int | EllipsisType) -> np.ndarray:
    """One layer of a weight, or all of it (`...`), in the stored dtype; InputError when it is missing or damaged."""
    array = _opened(folder, path)
    return _read(array[index], folder, path)


def _fitting(folder: epath.PathLike, path: str, wanted: jax.ShapeDtypeStruct) -> tensorstore.TensorStore:
    """A weight on disk that has the shape of `wanted`; InputError otherwise."""
    array = _opened(folder, path)
    if array.shape != wanted.shape:
        raise InputError(f"{folder}: the weight {path} is {array.shape} and not {wanted.shape}, as config.json says")
    return array


def check_weights(folder: epath.PathLike, abstract: Tree) -> None:
    """Raises InputError that lists the weights of `abstract` that are missing or of another shape; reads none."""
    weights = traverse_util.flatten_dict(abstract, sep="/").items()
    check_all(functools.partial(_fitting, folder, path, wanted) for path, wanted in weights)


def _load(folder: epath.PathLike, path: str, wanted: jax.ShapeDtypeStruct) -> np.ndarray | jax.Array:
    """One weight as `load_llm` gives it; each part is read once, and is on the host alone."""
    array = _fitting(folder, path, wanted).astype(wanted.dtype)
    if wanted.sharding is None:
        return _read(array, folder, path)
    places = {}
    for device, index in wanted.sharding.addressable_devices_indices_map(wanted.shape).items():
        places.setdefault(str(index), (index, []))[1].append(device)
    parts = []
    for index, devices in places.values():
        value = _read(array[index], folder, path)
        parts += jax.block_until_ready([jax.device_put(value, device) for device in devices])
        del value  # before the next one is read
    return jax.make_array_from_single_device_arrays(wanted.shape, wanted.sharding, parts)


def load_llm(folder: epath.PathLike, abstract: Tree) -> Tree:
    """Reads frozen weights straight to the shape, dtype and sharding of `abstract` (jax.ShapeDtypeStruct).

    `abstract` may leave weights out. Each process reads only the parts that its devices hold; without a sharding the
    weights come as numpy arrays. Raises InputError when one is missing, damaged or has another shape.
    """
    read_conversion(folder)
    weights = traverse_util.flatten_dict(abstract, sep="/")
    quiet = jax.process_index() > 0
    progress = tqdm(weights.items(), desc="loading the language model", unit="weight", leave=False, disable=quiet)
    for path, wanted in progress:
        weights[path] = _load(folder, path, wanted)
    return traverse_util.unflatten_dict(weights, sep="/")
