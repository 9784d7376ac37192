"""Tiny random language models of every family that is supported, in each of the ways in which they differ."""

import json
from typing import Any

import torch
import transformers

VOCAB = 61
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "initializer_range": 0.3, "rms_norm_eps": 3e-3,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 37.0, **parameters}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 12}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 8}
_TWO_WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5}
_GEMMA = {"sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 24}

# By name: model_type, and what is not as in SIZES.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _rope("default")),
    "llama, one kv head": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, no groups": ("llama", {"num_key_value_heads": 4, "head_dim": None}),
    "llama, all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear rope": ("llama", _rope("linear", factor=3.0)),
    "llama 3.2": ("llama", _rope("llama3", **_LLAMA3) | {"tie_word_embeddings": True}),
    "llama, yarn": ("llama", _rope("yarn", **_YARN)),
    "llama, yarn of all its words": (
        "llama",
        _rope("yarn", **_YARN, beta_fast=8.0, beta_slow=2.0, mscale=1.2, mscale_all_dim=0.7, truncate=False),
    ),
    "llama, yarn by its lengths": (
        "llama",
        _rope("yarn", factor=None, original_max_position_embeddings=16, attention_factor=1.3),
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "head_dim": None}),
    "qwen2 with windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "head_dim": None},
    ),
    "qwen3": ("qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen3, biases and windows": ("qwen3", {"attention_bias": True, "use_sliding_window": True, **_TWO_WINDOWS}),
    "qwen3, yarn": ("qwen3", _rope("yarn", **_YARN)),
    "gemma 3": ("gemma3_text", _GEMMA),
    "gemma 3, linear rope": (
        "gemma3_text",
        _GEMMA | {"attention_bias": True, "tie_word_embeddings": False, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 90.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 21.0},
        }},
    ),
}  # fmt: skip


def make(kind: str, seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """A random model of a kind, in float32; norms and biases are random, too."""
    model_type, own = KINDS[kind]
    settings = {name: value for name, value in (SIZES | own | changes).items() if value is not None or name in own}
    if settings.get("head_dim", 0) is None:
        del settings["head_dim"]
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, -0.5 if "gemma" in model_type else 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return model


def old_spelling(folder) -> None:
    """Rewrites config.json as transformers 4 wrote it: rope_theta and rope_scaling, torch_dtype."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))
