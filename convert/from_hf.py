"""Converts a LLaMA in a Hugging Face folder to a language-model folder of this project.

    python -m convert.from_hf HF_DIR --output DIR [--dtype bfloat16]

One tensor is in memory at a time. DIR may lie in a bucket.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Iterator
from types import EllipsisType
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from convert.names import Tensor, Tree, check_names, tensors
from viavsp_jax import __version__
from viavsp_jax.errors import InputError, reported_to_user
from viavsp_jax.llm_folder import llama_config, save_llm
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.state import abstract_model

# Names of dtypes in safetensors headers, and ours.
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def open_files(folder: epath.PathLike) -> dict[str, Any]:
    """Opens the safetensors of a folder, one file or several with an index: tensor name → open file with it.

    Raises InputError when there are none, or a file of the index is missing or damaged.
    """
    folder = pathlib.Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            outside = [name for name in names if os.path.basename(name) != name or not name.endswith(".safetensors")]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(f"{index} is not an index of safetensors files: {error!r}") from None
        if outside:
            raise InputError(f"{index} names {outside[0][:99]!r}, expected names of safetensors files beside it")
    elif (folder / "model.safetensors").exists():
        names = ["model.safetensors"]
    elif any(folder.glob("*.bin")):
        raise InputError(
            f"{folder} holds its weights as *.bin only, expected safetensors: load it with transformers "
            "(AutoModelForCausalLM.from_pretrained) and write it again with save_pretrained"
        )
    else:
        raise InputError(f"{folder} holds no model.safetensors and no model.safetensors.index.json")
    if missing := [name for name in names if not os.path.exists(folder / name)]:
        raise InputError(f"{folder} lacks files that its index names: {', '.join(missing)}")
    where = {}
    for name in names:
        try:
            file = safe_open(folder / name, "np")
        except SafetensorError as error:
            raise InputError(f"{folder / name} is not a safetensors file, or damaged: {error}") from None
        where |= dict.fromkeys(file.keys(), file)
    return where


def plan(folder: epath.PathLike, dtype: str | None) -> tuple[list[Tensor], dict[str, Any], str]:
    """Checks names, shapes and dtypes of all tensors from the files' headers, before any weight is read.

    Returns the tensors, the files they are in by name, and the dtype to convert to: `dtype`, or as stored.
    """
    config = llama_config(folder)
    files = open_files(folder)
    if config.tie_word_embeddings:  # the embedding again, under another name
        files.pop("lm_head.weight", None)
    if config.num_layers > len(files):
        raise InputError(f"{folder} holds {len(files)} tensors, but its config.json says {config.num_layers} layers")
    # The frozen weights do not depend on the adapter and the encoder.
    wanted = tensors(abstract_model(config, LoRAConfig(), 1, np.float32)[2])
    check_names([tensor.name for tensor in wanted], files, str(folder))
    headers = {tensor: files[tensor.name].get_slice(tensor.name) for tensor in wanted}
    wrong = [
        f"{tensor.name} is {header.get_shape()} and not {list(tensor.shape)}"
        for tensor, header in headers.items()
        if tuple(header.get_shape()) != tensor.shape
    ]
    if wrong:
        raise InputError(f"{folder} holds other shapes than its config.json says: {'; '.join(wrong)}")
    stored = {header.get_dtype() for header in headers.values()}
    if unknown := sorted(stored - DTYPES.keys()):
        raise InputError(f"{folder} holds weights of type {', '.join(unknown)}, expected one of {', '.join(DTYPES)}")
    if dtype is None and len(stored) > 1:
        raise InputError(f"{folder} mixes weights of type {', '.join(sorted(stored))}: choose one with --dtype")
    return wanted, files, dtype or DTYPES[stored.pop()]


def weights(
    folder: epath.PathLike, wanted: list[Tensor], files: dict[str, Any], dtype: str
) -> Iterator[tuple[str, int | EllipsisType, np.ndarray]]:
    """What was planned, as (path in the language model, layer in its stack or `...`, array), read when asked for.

    Raises InputError for a tensor with values that are not finite in `dtype`.
    """

    def read(tensor: Tensor) -> np.ndarray:
        with np.errstate(over="ignore"):  # reported below
            value = files[tensor.name].get_tensor(tensor.name).astype(dtype, copy=False)
        if not np.isfinite(value).all():
            raise InputError(f"{folder}: {tensor.name} holds values that are not finite numbers in {dtype}")
        return tensor.turned(value)

    for tensor in tqdm(wanted, desc="converting", unit="tensor"):
        # The array is not named here: nothing must keep it while the next one is read.
        yield tensor.path.removeprefix("llm/"), tensor.index, read(tensor)


def load_params(folder: epath.PathLike, dtype: str | None = None) -> Tree:
    """The frozen weights of a Hugging Face folder as a nested dict of numpy arrays; `dtype` None: as stored."""
    flat = {}
    for path, index, value in weights(folder, *plan(folder, dtype)):
        if index is ...:
            flat[path] = value
        else:
            flat.setdefault(path, []).append(value)
    return {"llm": traverse_util.unflatten_dict({path: np.asarray(value) for path, value in flat.items()}, sep="/")}


def copy_files(source: epath.PathLike, target: epath.PathLike, names: tuple[str, ...]) -> None:
    """Copies those of the named files that exist."""
    for name in names:
        if (epath.Path(source) / name).exists():
            (epath.Path(source) / name).copy(epath.Path(target) / name, overwrite=True)


def convert(folder: epath.PathLike, output: epath.PathLike, dtype: str | None = None) -> None:
    """Writes the language-model folder `output`; it counts as complete only when all of it is written."""
    output = epath.Path(output)
    if (output / "conversion.json").exists():
        raise InputError(f"{output} already holds a converted model: give another --output, or remove it")
    wanted, files, dtype = plan(folder, dtype)
    if output.exists() and output.resolve() == epath.Path(folder).resolve():
        raise InputError(f"{output} is the Hugging Face folder itself: give another --output")
    output.mkdir(parents=True, exist_ok=True)
    copy_files(folder, output, ("config.json", "generation_config.json", *TOKENIZER_FILES))
    conversion = {"source": os.path.abspath(folder), "dtype": dtype, "version": __version__}
    save_llm(output, weights(folder, wanted, files, dtype), conversion)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.from_hf", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="HF_DIR", help="folder with config.json and *.safetensors")
    parser.add_argument("--output", required=True, help="the language-model folder to write")
    parser.add_argument("--dtype", choices=list(DTYPES.values()), help="dtype of the weights (default: as stored)")
    args = parser.parse_args()
    with reported_to_user():
        convert(args.folder, args.output, args.dtype)


if __name__ == "__main__":
    main()
