"""The language model of an export: read from safetensors alone, kept as it was in the training.

Part of every export, see modeling_viavsp.py.
"""

import json
import pathlib
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available


class ExportError(ValueError):
    """An export, or what is asked of it, is not usable. The message is one sentence that says what was expected."""


def load_llm(
    folder: str | pathlib.Path,
    quantization: BitsAndBytesConfig | dict[str, Any] | None,
    device_map: Any,
    dtype: torch.dtype,
    **options: Any,
) -> PreTrainedModel:
    """A language model, from safetensors: pickled weights and code of its own are not read.

    `device_map` and `options` are handed on to transformers.

    Raises ExportError if a local folder is none, there are no safetensors, or no device has room for it.
    """
    if pathlib.Path(folder).is_absolute() and not (pathlib.Path(folder) / "config.json").exists():
        raise ExportError(f"{folder} holds no config.json: give the folder of the base language model")
    index = pathlib.Path(folder) / "model.safetensors.index.json"
    if index.exists():  # transformers would read what it names: pickles, too, and from anywhere
        weight_map = entry_of_json(index, "weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
        for name in names:
            if not isinstance(name, str) or pathlib.Path(name).name != name or not name.endswith(".safetensors"):
                raise ExportError(f"{index} names {str(name)[:99]!r}, expected names of safetensors files beside it")
    # If quantized, as stored: rounded to another dtype first, weights would get other codes than in the training.
    how = {"dtype": dtype} if quantization is None else {"dtype": "auto", "quantization_config": quantization}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, device_map=device_map, use_safetensors=True, trust_remote_code=False, **how, **options
        )
    except (OSError, KeyError) as error:  # the latter for an index that lacks an entry
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ExportError(
            f"{folder} holds no weights as safetensors ({reason}): give the folder of the base language model"
        ) from error
    if any(weight.is_meta for weight in model.parameters()):  # "auto" keeps on the disk what fits nowhere else
        raise ExportError(
            f"the device_map {device_map!r} finds no room for all of {folder}: give a quantization_config, a smaller "
            "dtype or more max_memory"
        )
    return model if quantization is None else in_compute_dtype(model)


def with_adapter(model: PreTrainedModel, adapter: pathlib.Path) -> PreTrainedModel:
    """The language model with the adapter of a folder in its layers."""
    from peft import PeftModel  # it takes seconds to import, and merged exports do without

    try:
        return PeftModel.from_pretrained(model, adapter).base_model.model
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{adapter} is not an adapter of python -m convert.to_hf: {error!r}") from error


def entry_of_json(path: pathlib.Path, key: str) -> Any:
    """An entry of a JSON file; ExportError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"{path}: expected a JSON file with {key}, as an export has it ({error!r})") from None


def trained_against(dtype: torch.dtype) -> BitsAndBytesConfig:
    """The 4-bit weights that adapters of a training with quantization nf4 were trained against."""
    if not is_bitsandbytes_available():
        raise ExportError("the adapter was trained on nf4 weights: pip install bitsandbytes, or export with --merge")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def in_compute_dtype(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose 4-bit layers then multiply in the dtype that they were given.

    On CPUs with instructions for it, bitsandbytes else takes bfloat16, whatever it was told.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model
