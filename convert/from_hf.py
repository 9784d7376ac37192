"""Converts a language model in a Hugging Face folder to a language-model folder of this project.

    python -m convert.from_hf HF_DIR --output DIR [--dtype bfloat16]

One tensor is in memory at a time. DIR may lie in a bucket.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Iterator
from types import EllipsisType

import numpy as np
import transformers
from etils import epath
from flax import traverse_util
from tqdm import tqdm

from convert.names import Tensor, Tree, check_shapes, tensors
from convert.safetensors_files import DTYPES, Stored, open_files, refuse_adapter
from viavsp_jax import __version__, llm_folder
from viavsp_jax.data.prompt import TOKENIZERS, check_ids, load_tokenizer, read_eos_ids
from viavsp_jax.llm_config import llama_config, read_config
from viavsp_jax.llm_folder import save_llm
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.options import new_folder
from viavsp_jax.state import abstract_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def renamed(files: dict[str, Stored], expected: set[str], folder: pathlib.Path) -> dict[str, Stored]:
    """The tensors by the expected names, as transformers finds them: under these, or with one `model.` more or less.

    A base model, for one, is saved without it. Raises InputError where two tensors are found for one name.
    """
    found = {}
    for name, stored in files.items():
        for other in (name.removeprefix("model."), f"model.{name}", name):
            if other in expected:
                break
        if other in found:
            raise InputError(f"{folder} holds {found[other].name} and {name}, expected one of them")
        found[other] = stored
    return found


def _equal(one: Stored, other: Stored) -> bool:
    """Whether two matrices are the same, some rows at a time."""
    one, other = one.header(), other.header()
    if one.get_shape() != other.get_shape() or one.get_dtype() != other.get_dtype():
        return False
    rows = one.get_shape()[0]
    parts = [slice(start, min(start + 4096, rows)) for start in range(0, rows, 4096)]
    return all(np.array_equal(one[part], other[part]) for part in parts)


def plan(folder: epath.PathLike, dtype: str | None) -> tuple[list[Tensor], dict[str, Stored], str]:
    """Checks names, shapes and dtypes of all tensors from the files' headers, before any weight is read.

    Returns the tensors, where they are by name, and the dtype to convert to: `dtype`, or as stored.
    """
    folder = pathlib.Path(folder)
    refuse_adapter(folder)
    config = llama_config(folder)
    files = open_files(folder)
    if config.num_layers > len(files):
        raise InputError(f"{folder} holds {len(files)} tensors, but its config.json says {config.num_layers} layers")
    # The frozen weights do not depend on the adapter and the encoder.
    wanted = tensors(abstract_model(ModelConfig(config, LoRAConfig(), 1, np.float32))[2])
    files = renamed(files, {HEAD, *(tensor.name for tensor in wanted)}, folder)
    head = files.pop(HEAD, None) if config.tie_word_embeddings else None
    if head:  # the embedding again, or where it is stored
        files.setdefault(EMBEDDING, head)
    shapes = {name: file.header().get_shape() for name, file in files.items()}
    wanted_shapes = {tensor.name: tensor.shape for tensor in wanted}
    check_shapes(wanted_shapes, shapes, str(folder), "holds other shapes than its config.json says")
    stored = {files[tensor.name].header().get_dtype() for tensor in wanted}
    known = [name for name, kind in DTYPES.items() if kind.name in llm_folder.DTYPES]
    if unknown := sorted(stored - {*known}):
        raise InputError(f"{folder} holds weights of type {', '.join(unknown)}, expected one of {', '.join(known)}")
    if head and not _equal(files[EMBEDDING], head):
        raise InputError(
            f"{folder} holds a {HEAD} that differs from {EMBEDDING}, which transformers would use in spite of "
            "tie_word_embeddings in config.json: set that to false, or remove the tensor"
        )
    return wanted, files, dtype or _dtype(folder, stored)


def _dtype(folder: pathlib.Path, stored: set[str]) -> str:
    """The one in which all weights are stored, if transformers would not make less of it."""
    if len(stored) > 1:
        raise InputError(f"{folder} mixes weights of type {', '.join(sorted(stored))}: choose one with --dtype")
    given, dtype = read_config(folder / "config.json"), DTYPES[stored.pop()].name
    said = given.get("dtype") or given.get("torch_dtype") or dtype
    if said not in (dtype, "float32"):  # which holds all values of the others
        raise InputError(
            f"{folder} holds weights of type {dtype}, but its config.json says {str(said)[:99]}, to which transformers "
            f"would round them: choose one with --dtype"
        )
    return dtype


def weights(
    folder: epath.PathLike, wanted: list[Tensor], files: dict[str, Stored], dtype: str
) -> Iterator[tuple[str, int | EllipsisType, np.ndarray]]:
    """What was planned, as (path in the language model, layer in its stack or `...`, array), read when asked for.

    Raises InputError for a tensor with values that are not finite in `dtype`.
    """

    def read(tensor: Tensor) -> np.ndarray:
        with np.errstate(over="ignore"):  # reported below
            value = files[tensor.name].read().astype(dtype, copy=False)
        if not np.isfinite(value).all():
            raise InputError(f"{folder}: {tensor.name} holds values that are not finite numbers in {dtype}")
        return tensor.to_ours(value)

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


def read_tokenizer(folder: epath.PathLike, vocab_size: int) -> "transformers.PreTrainedTokenizerBase | None":
    """The tokenizer of a Hugging Face folder; None, with a note to the user, if it holds none.

    Raises InputError for one that training could not use with a model of `vocab_size` embeddings.
    """
    if not any((epath.Path(folder) / name).exists() for name in TOKENIZERS):
        print(f"note: {folder} holds no {' or '.join(TOKENIZERS)}, and training needs one of them", file=sys.stderr)
        return None
    tokenizer = load_tokenizer(folder)
    read_eos_ids(folder)
    check_ids(tokenizer, vocab_size)
    return tokenizer


def convert(folder: epath.PathLike, output: epath.PathLike, dtype: str | None = None) -> None:
    """Writes the language-model folder `output`; it counts as complete only when all of it is written."""
    output = epath.Path(output)
    if (output / "conversion.json").exists():
        raise InputError(f"{output} already holds a converted model: give another --output, or remove it")
    wanted, files, dtype = plan(folder, dtype)
    if output.exists() and output.resolve() == epath.Path(folder).resolve():
        raise InputError(f"{output} is the Hugging Face folder itself: give another --output")
    tokenizer = read_tokenizer(folder, llama_config(folder).vocab_size)
    output.mkdir(parents=True, exist_ok=True)
    copy_files(folder, output, ("config.json", "generation_config.json", *TOKENIZER_FILES))
    if tokenizer and tokenizer.is_fast and not (output / "tokenizer.json").exists():
        # What was made of tokenizer.model, so that only this command needs the package that reads it.
        (output / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    conversion = {"source": os.path.abspath(folder), "dtype": dtype, "version": __version__}
    save_llm(output, weights(folder, wanted, files, dtype), conversion)


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.from_hf", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="HF_DIR", help="folder with config.json and *.safetensors")
    parser.add_argument(
        "--output", type=new_folder("--output"), required=True, help="the language-model folder to write"
    )
    parser.add_argument("--dtype", choices=llm_folder.DTYPES, help="dtype of the weights (default: as stored)")
    args = parser.parse_args()
    convert(args.folder, args.output, args.dtype)


if __name__ == "__main__":
    main()
