"""LLaMA with adapters on q, k and v: embed, run packed rows, prefill a cache, extend it by one token a beam.

The numbers equal those of transformers' `LlamaForCausalLM`. Layers are stacked and run by one `lax.scan`.

Letters: B rows, M beams (continuations of one prompt), S positions, D model width, H query heads, G key/value heads,
K head width, F feed-forward width, V vocabulary, N layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from viavsp_jax.models.attention import WHOLE_ROWS, PackedAttention
from viavsp_jax.models.cache import Cache, attend
from viavsp_jax.models.dropout import three_dropouts
from viavsp_jax.models.lora import Linear, LoRAConfig
from viavsp_jax.models.quantize import Quantization


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape of a LLaMA, in the words of its Hugging Face config."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool


# What the backward pass computes again instead of keeping it from the forward pass: nothing; all but the outputs of
# matrix products, of attention and of the random generator; everything inside a layer.
Remat = Literal["none", "elementwise", "layers"]
KEPT = ("kept", "qkv", "attention", "middle", "ffn")  # of a layer under "elementwise"


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary embedding in LLaMA's half-split order. x [B, S, H, K], positions int32[B, S]; float32 angles."""
    half = x.shape[-1] // 2
    # By numpy, in float32 as PyTorch has them: positions multiply what a device's own powers would err.
    frequencies = 1 / np.float32(theta) ** (np.arange(half, dtype=np.float32).reshape(1, 1, 1, half) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class RMSNorm(nnx.Module):
    """x / rms(x) · scale, the rms in float32."""

    def __init__(self, shape: tuple[int, ...], eps: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] → [..., D] in x's dtype."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(x.dtype)
        return normed.astype(x.dtype) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


class Block(nnx.Module):
    """All N decoder layers, stacked on axis 0; inside the scan, one of them."""

    def __init__(
        self, config: LlamaConfig, lora: LoRAConfig, dtype: DTypeLike, quantization: Quantization, rngs: nnx.Rngs
    ):
        c, stack = config, config.num_layers
        linear = {"stack": stack, "dtype": dtype, "quantization": quantization, "rngs": rngs}
        self.config, self.lora = config, lora
        self.attention_norm = RMSNorm((stack, c.hidden_size), c.rms_norm_eps, dtype)
        self.q = Linear(c.hidden_size, c.num_heads * c.head_dim, lora=lora, **linear)
        self.k = Linear(c.hidden_size, c.num_kv_heads * c.head_dim, lora=lora, **linear)
        self.v = Linear(c.hidden_size, c.num_kv_heads * c.head_dim, lora=lora, **linear)
        self.o = Linear(c.num_heads * c.head_dim, c.hidden_size, **linear)
        self.ffn_norm = RMSNorm((stack, c.hidden_size), c.rms_norm_eps, dtype)
        self.gate = Linear(c.hidden_size, c.intermediate_size, **linear)
        self.up = Linear(c.hidden_size, c.intermediate_size, **linear)
        self.down = Linear(c.intermediate_size, c.hidden_size, **linear)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        attention: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x [B, S, D], positions [B, S]; `attention` takes q [B, S, H, K], k, v [B, S, G, K] to [B, S, H·K].

        Returns the new x, and this x's keys and values [B, S, G, K]. A PRNG key turns adapter dropout on.
        """
        c = self.config
        h = self.attention_norm(x)
        dropped = (h, h, h) if key is None else three_dropouts(h, self.lora.dropout, key)
        q, k, v = (
            projection(h, x).reshape(*h.shape[:2], -1, c.head_dim)
            for projection, x in zip((self.q, self.k, self.v), dropped, strict=True)
        )
        q, k = rotate(q, positions, c.rope_theta), rotate(k, positions, c.rope_theta)
        q, k, v = checkpoint_name((q, k, v), "qkv")
        x = checkpoint_name(x + self.o(checkpoint_name(attention(q, k, v), "attention")), "middle")
        h = self.ffn_norm(x)
        gate, up = checkpoint_name((self.gate(h), self.up(h)), "ffn")
        return x + self.down(jax.nn.silu(gate) * up), (k, v)


class Llama(nnx.Module):
    """The language model. It computes in `dtype`, and stores its frozen weights in it.

    `quantization` is of the kernels of the layers: none, or nf4, which stores them in 4 bits a weight.
    """

    def __init__(
        self,
        config: LlamaConfig,
        lora: LoRAConfig,
        dtype: DTypeLike,
        quantization: Quantization = "none",
        attention: PackedAttention = WHOLE_ROWS,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.attention = attention
        self.dtype = dtype
        embedding = jax.random.normal(rngs.params(), (config.vocab_size, config.hidden_size), dtype)
        self.embedding = nnx.Param(embedding * jnp.asarray(0.02, dtype))
        self.layers = Block(config, lora, dtype, quantization, rngs)
        self.final_norm = RMSNorm((config.hidden_size,), config.rms_norm_eps, dtype)
        if config.tie_word_embeddings:
            self.head = None
        else:
            head = jax.random.normal(rngs.params(), (config.hidden_size, config.vocab_size), dtype)
            self.head = nnx.Param(head * jnp.asarray(config.hidden_size**-0.5, dtype))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32[...] → [..., D] in the compute dtype."""
        return self.embedding[...][tokens].astype(self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final norm and head: [..., D] → float32[..., V]."""
        head = self.embedding[...].T if self.head is None else self.head[...]
        hidden = self.final_norm(hidden)
        return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def __call__(
        self, x: jax.Array, segment_ids: jax.Array, positions: jax.Array, key: jax.Array | None, remat: Remat
    ) -> jax.Array:
        """Packed rows of embeddings x [B, S, D] → hidden states [B, S, D] before the final norm."""
        graph, params = nnx.split(self.layers)
        keys = None if key is None else jax.random.split(key, self.config.num_layers)

        def attention(q, k, v):
            return self.attention(q, k, v, segment_ids)

        def layer(x, inputs):
            params, key = inputs
            return nnx.merge(graph, params)(x, positions, attention, key)[0], None

        # Inside a scan there are no common subexpressions to keep apart.
        if remat == "elementwise":
            kept = jax.checkpoint_policies.save_only_these_names(*KEPT)
            layer = jax.checkpoint(layer, policy=kept, prevent_cse=False)
        elif remat == "layers":
            layer = jax.checkpoint(layer, prevent_cse=False)
        return jax.lax.scan(layer, x, (params, keys))[0]

    def prefill(self, x: jax.Array, lengths: jax.Array, capacity: int, beams: int) -> tuple[jax.Array, Cache]:
        """Runs prompts x [B, S, D] of int32[B] `lengths` (padding on the right).

        Returns the logits after each prompt, float32[B, V], and a cache that holds `capacity` tokens of each beam.
        """
        batch, size = x.shape[:2]
        valid = (jnp.arange(size)[None] < lengths[:, None]).astype(jnp.int32)
        positions = jnp.tile(jnp.arange(size), (batch, 1))
        graph, params = nnx.split(self.layers)

        def layer(x, params):
            x, (k, v) = nnx.merge(graph, params)(x, positions, lambda q, k, v: WHOLE_ROWS(q, k, v, valid))
            return x, (k.swapaxes(1, 2), v.swapaxes(1, 2))

        x, (k, v) = jax.lax.scan(layer, x, params)
        empty = jnp.zeros((*k.shape[:3], capacity * beams, k.shape[-1]), k.dtype)
        cache = Cache(
            prompt_k=k, prompt_v=v, lengths=lengths, k=empty, v=empty,
            visible=jnp.zeros((batch, beams, capacity * beams), bool), steps=jnp.int32(0), index=jnp.int32(0),
        )  # fmt: skip
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], 1)[:, 0]
        return self.logits(last), cache

    def extend(self, tokens: jax.Array, parents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Appends one token to every beam; beam m of row b continues what beam `parents[b, m]` of that row was.

        tokens, parents int32[B, M] → the next logits float32[B, M, V], and the cache, which must have room for them,
        with the tokens in it.
        """
        batch, beams = tokens.shape
        prompt = (jnp.arange(cache.prompt_k.shape[3])[None] < cache.lengths[:, None])[..., None]
        visible = jnp.take_along_axis(cache.visible, parents[..., None], 1)
        seen = visible.swapaxes(1, 2)
        positions = jnp.tile((cache.lengths + cache.steps)[:, None], (1, beams))
        graph, params = nnx.split(self.layers)

        def layer(x, inputs):
            params, prompt_k, prompt_v, past_k, past_v = inputs
            past = [(prompt_k, prompt_v, prompt), (past_k, past_v, seen)]
            x, (k, v) = nnx.merge(graph, params)(x, positions, lambda q, k, v: attend(q, k, v, past))
            return x, (k.swapaxes(1, 2), v.swapaxes(1, 2))

        past = cache.prompt_k, cache.prompt_v, cache.k, cache.v
        x, (k, v) = jax.lax.scan(layer, self.embed(tokens), (params, *past))
        itself = jnp.tile(jnp.eye(beams, dtype=bool), (batch, 1, 1))
        here = (0, 0, 0, cache.index, 0)
        cache = dataclasses.replace(
            cache,
            k=jax.lax.dynamic_update_slice(cache.k, k, here),
            v=jax.lax.dynamic_update_slice(cache.v, v, here),
            visible=jax.lax.dynamic_update_slice(visible, itself, (0, 0, cache.index)),
            steps=cache.steps + 1,
            index=cache.index + beams,
        )
        return self.logits(x), cache
