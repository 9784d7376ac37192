"""A small LLaMA with the same weights in this project and in transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import llm_kinds
import numpy as np
import torch
import transformers
from flax import nnx, traverse_util
from hf_weights import load_params

from viavsp_jax.llm_folder import llama_config
from viavsp_jax.models.llama import Llama
from viavsp_jax.models.lora import PROJECTIONS, LoRAConfig

MODULE, WHOLE = 1e-5, 1e-4


VOCAB, WIDTH, LAYERS, HEADS, HEAD_DIM = 61, 32, 3, 4, 10


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights in both libraries."""

    ours: Llama
    theirs: transformers.LlamaForCausalLM


def make_pair(folder, kv_heads=2, tied=False, kind=None) -> Pair:
    """Of a LLaMA, or of a kind of llm_kinds.KINDS."""
    if kind is not None:
        theirs = llm_kinds.make(kind)
        theirs.save_pretrained(folder)
        return Pair(load_model(folder, PROJECTIONS), theirs)
    torch.manual_seed(kv_heads)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=kv_heads, head_dim=HEAD_DIM, rms_norm_eps=3e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 37.0}, tie_word_embeddings=tied,
        initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    theirs.save_pretrained(folder)
    return Pair(load_model(folder), theirs)


def load_model(folder, targets=("q", "k", "v")) -> Llama:
    """The folder's weights in our model, with adapters of zeros."""

    def build():
        return Llama(llama_config(folder), LoRAConfig(2, targets=targets), jnp.float32, rngs=nnx.Rngs(0))

    graph, abstract = split(nnx.eval_shape(build))
    flat = {path: np.zeros(x.shape, x.dtype) for path, x in traverse_util.flatten_dict(abstract).items()}
    flat |= traverse_util.flatten_dict(load_params(folder)["llm"])
    return nnx.merge(graph, traverse_util.unflatten_dict(jax.tree.map(jnp.array, flat)))


def draw(shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


def split(model):
    graph, params = nnx.split(model)
    return graph, nnx.to_pure_dict(params)
