"""The language model of an export with the adapter folded in, as a Hugging Face folder of its own."""

import functools
import json
import pathlib
from collections.abc import Callable

import numpy as np
from etils import epath

from convert import safetensors_files
from convert.from_hf import TOKENIZER_FILES, copy_files
from convert.names import Tensor, Tree, flatten, tensors
from convert.safetensors_files import Piece
from convert.work_folder import WorkFolder
from viavsp_jax.data.prompt import Prompt
from viavsp_jax.llm_folder import read_layer
from viavsp_jax.models.lora import LoRAConfig, merge_adapter
from viavsp_jax.models.nf4 import round_trip
from viavsp_jax.models.quantize import Quantization


def merged(
    llm: epath.PathLike, tensor: Tensor, adapters: Tree, lora: LoRAConfig, quantization: Quantization
) -> np.ndarray:
    """One frozen tensor with its adapter folded in, in Hugging Face orientation.

    Args:
      llm: the converted language-model folder.
      tensor: which one.
      adapters: trained weights by our path, numpy float32; those of other tensors are passed over.
      quantization: how the kernels were stored in training. Adapters are folded into what they were trained against;
        after int8, whose rounding is near that of bfloat16, into the weights as they were before it.

    Sums are float32, the result is in the stored dtype.
    """
    value, adapter = read_layer(llm, tensor.path.removeprefix("llm/"), tensor.index), tensor.path.removesuffix("kernel")
    if quantization == "nf4" and tensor.path.endswith("/kernel"):
        value = np.asarray(round_trip(value))
    if f"{adapter}lora/a" in adapters:
        a, b = (adapters[f"{adapter}lora/{name}"][tensor.index] for name in "ab")
        value = np.asarray(merge_adapter(value, a, b, lora))
    return tensor.to_theirs(value)


def pieces(abstract: Tree, read: Callable[[Tensor], np.ndarray]) -> list[Piece]:
    """All tensors of a model by their Hugging Face names; `read` gives each of them."""
    dtypes = {path: value.dtype for path, value in flatten(abstract).items()}
    return [
        Piece(tensor.name, tensor.shape, dtypes[tensor.path], functools.partial(read, tensor))
        for tensor in tensors(abstract)
    ]


def write_merged_configs(folder: pathlib.Path, llm: epath.PathLike, prompt: Prompt, dtype: str) -> None:
    """The tokenizer, config.json in the stored dtype, and a generation config that stops at the end token."""
    copy_files(llm, folder, TOKENIZER_FILES)
    config = json.loads((epath.Path(llm) / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    ends = list(prompt.end_ids) if len(prompt.end_ids) > 1 else prompt.end_id
    generation = {"bos_token_id": prompt.begin_id, "eos_token_id": ends, "pad_token_id": prompt.pad_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")


def write_merged(folder: pathlib.Path, opened: WorkFolder, adapters: Tree, prompt: Prompt) -> None:
    """Writes the folder; `adapters` {"llm": ...} are float32, in our layout."""
    folder.mkdir()
    settings = opened.settings
    read = functools.partial(
        merged,
        opened.llm,
        adapters=flatten(adapters),
        lora=settings.lora,
        quantization=settings.llm.quantization,
    )
    safetensors_files.write(folder, pieces(opened.frozen, read))
    write_merged_configs(folder, opened.llm, prompt, opened.conversion["dtype"])
