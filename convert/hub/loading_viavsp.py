"""What the keywords of transformers' `from_pretrained` mean for an export.

Part of every export, see modeling_viavsp.py.
"""

import os
import pathlib
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PretrainedConfig

from .language_model_viavsp import ExportError

# What says where on the Hugging Face hub the files are, and how they are had from there.
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
# Handed on to the language model, which is nearly all of the weights.
_LANGUAGE_MODEL = ("attn_implementation", "max_memory")
# What transformers' AutoModel and pipeline tell every model besides what they were told.
_INTERNAL = ("trust_remote_code", "code_revision", "adapter_kwargs", "_from_auto", "_from_pipeline", "_commit_hash")
# Keywords that say what is so of every export, with the values by which they do.
_SO_ANYWAY = {
    "gguf_file": (None,), "ignore_mismatched_sizes": (False,), "low_cpu_mem_usage": (None, False, True),
    "proxies": (None,), "state_dict": (None,), "use_safetensors": (None, True), "variant": (None,),
    "weights_only": (True,),
}  # fmt: skip
# What output_loading_info says of an export that could be loaded.
NOTHING_MISSING = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}


def sorted_keywords(keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those for the hub, and those for the language model.

    Raises TypeError for one that transformers has not or that means nothing here, ExportError for a value that cannot
    be followed.
    """
    known = {*_HUB, *_LANGUAGE_MODEL, *_INTERNAL, *_SO_ANYWAY}
    if unknown := sorted(keywords.keys() - known):
        raise TypeError(f"from_pretrained of an export takes no keyword {', '.join(unknown)}")
    for name, values in _SO_ANYWAY.items():
        if name in keywords and keywords[name] not in values:
            raise ExportError(f"{name}={keywords[name]!r} cannot be followed: expected {values[-1]!r} for an export")
    given = {name: value for name, value in keywords.items() if value is not None}
    return tuple({name: given[name] for name in names if name in given} for names in (_HUB, _LANGUAGE_MODEL))


def find_export(folder: str | os.PathLike, subfolder: str, hub: dict[str, Any]) -> pathlib.Path:
    """The folder of an export that lies here, or that is had from the hub by its name. ExportError if it is neither."""
    root = pathlib.Path(folder)
    if not root.is_dir():
        try:
            root = pathlib.Path(snapshot_download(os.fspath(folder), **hub))
        except (OSError, ValueError) as error:  # as the hub says that a name is none, or not known
            reason = next(iter(str(error).strip().splitlines()), "")
            raise ExportError(
                f"{folder} is no folder, nor can it be had from the Hugging Face hub ({reason})"
            ) from error
    root = root / (subfolder or "")
    if not (root / "config.json").exists():
        raise ExportError(f"{root / 'config.json'} does not exist: expected an export of python -m convert.to_hf")
    return root


def check_outputs(config: PretrainedConfig) -> None:
    """ExportError for keywords that AutoModel puts into the config, and that ask for what no export returns."""
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name, False):
            raise ExportError(f"{name}=True cannot be followed: an export returns texts and their scores")


def weights_dtype(dtype: torch.dtype | str | None, config: PretrainedConfig) -> torch.dtype:
    """What `dtype` asks for; None and auto are that of the training."""
    dtype = config.dtype if dtype is None or dtype == "auto" else dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ExportError(f"the dtype is {dtype!r}: expected float32, bfloat16, float16 or auto")
    return found


def placement(device_map: Any) -> Any:
    """Where the language model goes; the other parts follow its first weights."""
    if isinstance(device_map, dict):
        if device_map.keys() != {""}:
            raise ExportError(
                f"the device_map places {', '.join(map(str, device_map)) or 'nothing'}: expected one device, "
                "{'': device} or 'auto'"
            )
        return device_map[""]
    return "cpu" if device_map is None else device_map
