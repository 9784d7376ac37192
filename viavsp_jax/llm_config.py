"""What a Hugging Face `config.json` says of a LLaMA, as transformers understands it, or why it is none."""

import json
import math
from typing import Any

import transformers  # its parts are imported when they are used
from etils import epath

from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.runtime.errors import InputError

# Our names of sizes, and those of config.json. It must hold the first five: transformers would take LLaMA-7B's.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
_SIZES_THAT_FOLLOW = {"num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
# What else transformers' class resolves. No other field of a stranger's file gets to it: some take all memory.
_RESOLVED = (
    *_SIZES.values(),
    *_SIZES_THAT_FOLLOW.values(),
    *("hidden_act", "attention_bias", "mlp_bias", "rms_norm_eps", "tie_word_embeddings"),
    *("rope_parameters", "rope_scaling", "rope_theta"),
)
# Fields that transformers obeys for a LLaMA as for any model, and what they are where nothing is asked for.
_OBEYED = {
    "is_causal": True,
    "is_encoder_decoder": False,
    "sliding_window": None,
    "attention_chunk_size": None,
    "layer_types": None,
    "per_layer_config": None,
    "kv_sharing_modes": None,
    "attribute_map": None,
    "fusion_config": None,
    "quantization_config": None,
    "transformers_weights": None,
    "configuration_files": None,
}


def llama_config(folder: epath.PathLike) -> LlamaConfig:
    """Shape of the LLaMA in a folder with a Hugging Face `config.json`; InputError for anything but a plain LLaMA."""
    path = epath.Path(folder) / "config.json"
    given = read_config(path)
    _check_sizes(given, path)
    try:
        theirs = transformers.LlamaConfig(**{name: given[name] for name in _RESOLVED if name in given})
        rope, eps, tied = theirs.rope_parameters, theirs.rms_norm_eps, theirs.tie_word_embeddings
        shape = LlamaConfig(
            **{ours: getattr(theirs, name) for ours, name in (_SIZES | _SIZES_THAT_FOLLOW).items()},
            rope_theta=float(rope["rope_theta"]),
            rms_norm_eps=eps,
            tie_word_embeddings=tied,
        )
        asked = {
            "hidden_act": ({"swish": "silu"}.get(theirs.hidden_act, theirs.hidden_act), "silu"),
            "attention_bias": (theirs.attention_bias, False),
            "mlp_bias": (theirs.mlp_bias, False),
            "rope type": (rope["rope_type"], "default"),
        }
    except Exception as error:  # what transformers raises for a field of another type is no kind of it
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} is not the config of a LLaMA: {type(error).__name__}: {reason}") from None
    _refuse(asked, path)
    if not 0 <= eps < math.inf:
        raise InputError(f"{path}: rms_norm_eps is {eps!r}, expected a number of at least 0")
    if not 0 < shape.rope_theta < math.inf:
        raise InputError(f"{path}: rope_theta is {shape.rope_theta!r}, expected a number above 0")
    return shape


def read_config(path: epath.Path) -> dict[str, Any]:
    """The fields of a config.json; InputError if it is not that of a LLaMA, or asks for what is not done here."""
    if not path.exists():
        raise InputError(
            f"{path} does not exist: expected a folder with a LLaMA, as python -m convert.from_hf makes it"
        )
    try:
        given = json.loads(path.read_bytes())
        if (model := given.get("model_type")) != "llama":
            raise InputError(f"{path}: model_type is {model!r}, only 'llama' is supported{_inside(given)}")
        ropes = [given.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
        asked = {name: (given.get(name, wanted), wanted) for name, wanted in _OBEYED.items()}
        kinds = [rope.get("rope_type", rope.get("type", "default")) for rope in ropes]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not the config of a LLaMA: {error!r}") from None
    if method := given.get("quantization_config"):
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise InputError(
            f"{path}: the weights are quantized (quantization_config: {str(method)[:99]}), expected plain ones: load "
            "the model with transformers, call its dequantize() and write it again with save_pretrained"
        )
    _refuse(asked | {"rope type": (next((kind for kind in kinds if kind != "default"), "default"), "default")}, path)
    return given


def _inside(given: dict[str, Any]) -> str:
    """What a model of several parts holds: its language model may be one for us, on its own."""
    text = given.get("text_config") or given.get("llm_config")
    if not isinstance(text, dict):
        return ""
    return (
        f" (it is a model of several parts with a {text.get('model_type')!r} inside: write its language model to a "
        "folder of its own with save_pretrained)"
    )


def _refuse(asked: dict[str, tuple[Any, Any]], path: epath.Path) -> None:
    """InputError for the first of (found, supported) by name that differ."""
    for name, (found, wanted) in asked.items():
        if found != wanted:
            raise InputError(f"{path}: {name} is {repr(found)[:99]}, only {wanted!r} is supported")


def _check_sizes(given: dict[str, Any], path: epath.Path) -> None:
    """InputError for sizes that no LLaMA has."""
    if missing := [name for name in _SIZES.values() if name not in given]:
        raise InputError(f"{path} is not the config of a LLaMA: it lacks {', '.join(missing)}")
    sizes = {ours: given.get(name) for ours, name in (_SIZES | _SIZES_THAT_FOLLOW).items()}
    for ours, value in sizes.items():
        if ours in _SIZES_THAT_FOLLOW and value is None:
            continue
        if not (type(value) is int and 0 < value < 2**31):
            raise InputError(f"{path}: {ours} is {repr(value)[:99]}, expected a positive whole number")
    heads = sizes["num_heads"]
    if heads % (sizes["num_kv_heads"] or heads):
        raise InputError(f"{path}: num_heads is {heads}, expected a multiple of num_kv_heads {sizes['num_kv_heads']}")
    if (width := sizes["head_dim"] or sizes["hidden_size"] // heads) % 2 or not width:
        raise InputError(f"{path}: head_dim is {width}, expected an even number")
