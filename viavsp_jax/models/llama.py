"""LLaMA and its relatives, with adapters: embed, run packed rows, prefill a cache, extend it by one token a beam.

The numbers equal those of transformers' LLaMA, Mistral, Qwen2, Qwen3 and Gemma 3, which differ in a few places: see
`LlamaConfig`. Layers are stacked and run by one `lax.scan`.

Letters: B rows, M beams (continuations of one prompt), S positions, D model width, H query heads, G key/value heads,
K head width, F feed-forward width, V vocabulary, N layers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from viavsp_jax.models.activation import Activation, gated
from viavsp_jax.models.attention import WHOLE_ROWS, PackedAttention, heads
from viavsp_jax.models.cache import Cache, attend
from viavsp_jax.models.dropout import three_dropouts
from viavsp_jax.models.lora import PROJECTIONS, Linear, LoRAConfig, Projection
from viavsp_jax.models.norm import RMSNorm
from viavsp_jax.models.quantize import Quantization
from viavsp_jax.models.rope import RopeScaling, rotate


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape of a language model, in the words of its Hugging Face config; what has a default is as in LLaMA 2."""

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
    rope_scaling: RopeScaling = RopeScaling()
    biased: tuple[Projection, ...] = ()  # projections with a bias
    qk_norm: bool = False  # an RMSNorm over each head of q and k, before the rotation
    windows: tuple[int | None, ...] = ()  # of each layer: positions a token sees, its own included; None, (): all
    activation: Activation = "silu"
    # What only Gemma has.
    unit_offset: bool = False  # norms scale by 1 + w, in float32
    post_norms: bool = False  # norms behind attention and feed-forward, too
    embedding_scale: float = 1.0  # of tokens
    query_scale: float | None = None  # of scores; None: 1 / √K
    local_rope_theta: float | None = None  # of layers with a window, which have no rope_scaling


# What the backward pass computes again instead of keeping it from the forward pass: nothing; all but the outputs of
# matrix products and of attention; everything inside a layer.
Remat = Literal["none", "elementwise", "layers"]
_POLICIES = {
    # Weights, which are sliced from the stacks of all layers, would be kept a second time.
    "none": lambda primitive, *_, **__: primitive.name not in ("dynamic_slice", "squeeze"),
    "elementwise": jax.checkpoint_policies.save_only_these_names("qkv", "low", "attention", "middle", "ffn"),
    "layers": None,
}


class Block(nnx.Module):
    """All N decoder layers, stacked on axis 0; inside the scan, one of them."""

    def __init__(
        self, config: LlamaConfig, lora: LoRAConfig, dtype: DTypeLike, quantization: Quantization, rngs: nnx.Rngs
    ):
        c, stack = config, config.num_layers
        self.config, self.lora = config, lora

        def linear(name: Projection, inputs: int, outputs: int) -> Linear:
            adapter = lora if name in lora.targets else None
            return Linear(
                inputs, outputs, stack=stack, dtype=dtype, quantization=quantization, rngs=rngs, lora=adapter,
                bias=name in c.biased,
            )  # fmt: skip

        def norm(width: int) -> RMSNorm:
            return RMSNorm((stack, width), c.rms_norm_eps, c.unit_offset, dtype)

        self.attention_norm = norm(c.hidden_size)
        self.q = linear("q", c.hidden_size, c.num_heads * c.head_dim)
        self.k = linear("k", c.hidden_size, c.num_kv_heads * c.head_dim)
        self.v = linear("v", c.hidden_size, c.num_kv_heads * c.head_dim)
        self.o = linear("o", c.num_heads * c.head_dim, c.hidden_size)
        self.gate = linear("gate", c.hidden_size, c.intermediate_size)
        self.up = linear("up", c.hidden_size, c.intermediate_size)
        self.down = linear("down", c.intermediate_size, c.hidden_size)
        if c.qk_norm:
            self.q_norm, self.k_norm = norm(c.head_dim), norm(c.head_dim)
        if c.post_norms:
            self.attention_out_norm = norm(c.hidden_size)
            self.ffn_in_norm, self.ffn_out_norm = norm(c.hidden_size), norm(c.hidden_size)
        else:
            self.ffn_norm = norm(c.hidden_size)

    def __call__(
        self,
        x: jax.Array,
        attention: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
        key: jax.Array | None = None,
        at: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """One layer.

        Args:
          x: [B, S, D].
          attention: takes q [B, S, H·K] and k, v [B, S, G·K], not rotated yet, to [B, S, H·K] and whatever else.
          key: a PRNG key turns adapter dropout on.
          at: int32[B, L], the only positions of which the result is needed; None: all.

        Returns the new x, [B, S, D] or [B, L, D], and what else the attention returned.
        """
        c = self.config
        h = self.attention_norm(x)
        projections = zip((self.q, self.k, self.v), self._dropped("qkv", h, key), strict=True)
        q, k, v = checkpoint_name(tuple(projection(h, dropped) for projection, dropped in projections), "qkv")
        if c.qk_norm:
            q, k = (norm(one.reshape(*one.shape[:2], -1, c.head_dim)).reshape(one.shape)
                    for norm, one in ((self.q_norm, q), (self.k_norm, k)))  # fmt: skip
        if c.query_scale is not None:
            q = q * jnp.asarray(c.query_scale * c.head_dim**0.5, q.dtype)  # attention itself scales by 1 / √K
        attended, other = attention(q, k, v)
        if at is not None:
            x, attended = (jnp.take_along_axis(one, at[..., None], 1) for one in (x, attended))
        attended = checkpoint_name(attended, "attention")
        out = self.o(attended, *self._dropped("o", attended, key))
        if c.post_norms:
            x = x + self.attention_out_norm(checkpoint_name(out, "middle"))
        else:
            x = checkpoint_name(x + out, "middle")
        h = self.ffn_in_norm(x) if c.post_norms else self.ffn_norm(x)
        to_gate, to_up = self._dropped(("gate", "up"), h, key)
        middle = gated(*checkpoint_name((self.gate(h, to_gate), self.up(h, to_up)), "ffn"), c.activation)
        out = self.down(middle, *self._dropped(("down",), middle, key))
        if c.post_norms:
            out = self.ffn_out_norm(checkpoint_name(out, "ffn"))
        return x + out, other

    def _dropped(self, names: Sequence[Projection], x: jax.Array, key: jax.Array | None) -> Sequence[jax.Array]:
        """What the adapters of some projections of x read: x with a dropout for each, in training."""
        if key is None or not set(names) & set(self.lora.targets):
            return [x] * len(names)
        if names[0] != "q":
            key = jax.random.fold_in(key, PROJECTIONS.index(names[0]))
        return three_dropouts(x, self.lora.dropout, key)[: len(names)]


class Llama(nnx.Module):
    """The language model. It computes in `dtype`, and stores its frozen weights in it.

    `quantization` is of the kernels of the layers: none, or int8 or nf4, which store them in 8 or 4 bits a weight.
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
        self.final_norm = RMSNorm((config.hidden_size,), config.rms_norm_eps, config.unit_offset, dtype)
        if config.tie_word_embeddings:
            self.head = None
        else:
            head = jax.random.normal(rngs.params(), (config.hidden_size, config.vocab_size), dtype)
            self.head = nnx.Param(head * jnp.asarray(config.hidden_size**-0.5, dtype))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32[...] → [..., D] in the compute dtype."""
        embedded = self.embedding[...][tokens].astype(self.dtype)
        scale = self.config.embedding_scale
        return embedded if scale == 1 else embedded * jnp.asarray(scale, self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Final norm and head: [..., D] → float32[..., V]."""
        head = self.embedding[...].T if self.head is None else self.head[...]
        hidden = self.final_norm(hidden)
        return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def _run(
        self,
        x: jax.Array,
        positions: jax.Array,
        attention: Callable[..., tuple[jax.Array, Any]],
        reach: int | None,
        inputs: Any = None,
        keys: jax.Array | None = None,
        remat: Remat = "none",
        at: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Runs the layers one after the other on x [B, S, D]: the new x, and what `attention` returned, stacked.

        Args:
          positions: int32[B, S].
          attention: takes q, k, v as in `Block`; the table of their rotation; how many positions a token sees, which is
            None where all layers see all of `reach`; and the layer's inputs.
          reach: positions between a token and the first that it could see, its own included; None: any number.
          inputs: a tree of arrays [N, ...], of each layer.
          keys: a PRNG key of each layer.
          at: int32[B, L], the only positions of which the result is needed; then nothing is returned of `attention`.
        """
        # Frozen weights are indexed, not scanned over, so that the last layer can stand apart without a copy of them.
        c, (graph, adapters, frozen) = self.config, nnx.split(self.layers, lambda path, _: "lora" in path, ...)
        turning = c.rope_scaling.table(positions, c.rope_theta, c.head_dim, x.dtype)
        windows = local = None
        if any(window is not None and (reach is None or window < reach) for window in c.windows):
            windows = jnp.array([np.iinfo(np.int32).max if window is None else window for window in c.windows])
        if c.local_rope_theta is not None:
            near = RopeScaling().table(positions, c.local_rope_theta, c.head_dim, x.dtype)
            local = jnp.array([window is not None for window in c.windows])

        def body(x, layer, at=None):
            number, adapters, window, local, inputs, key = layer
            here = turning if local is None else jnp.where(local, near, turning)
            weights = jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, number, keepdims=False), frozen)
            block = nnx.merge(graph, adapters, weights)
            return block(x, lambda q, k, v: attention(q, k, v, here, window, inputs), key, at)

        # Inside a scan there are no common subexpressions to keep apart.
        body = jax.checkpoint(body, policy=_POLICIES[remat], prevent_cse=False)
        layers = jnp.arange(c.num_layers), adapters, windows, local, inputs, keys
        if at is None:
            return jax.lax.scan(body, x, layers)
        before, last = (jax.tree.map(lambda stack, part=part: stack[part], layers) for part in (slice(-1), -1))
        return body(jax.lax.scan(body, x, before)[0], last, at)[0], None

    def __call__(
        self,
        x: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        key: jax.Array | None,
        remat: Remat,
        at: jax.Array | None = None,
    ) -> jax.Array:
        """Packed rows of embeddings x [B, S, D] → hidden states before the final norm, `at` int32[B, L] or at all S."""
        keys = None if key is None else jax.random.split(key, self.config.num_layers)

        def attention(q, k, v, turning, window, _):
            return self.attention(q, k, v, turning, segment_ids, positions, window), None

        reach = min(self.attention.window or x.shape[1], x.shape[1])
        return self._run(x, positions, attention, reach, keys=keys, remat=remat, at=at)[0]

    def prefill(self, x: jax.Array, lengths: jax.Array, capacity: int, beams: int) -> tuple[jax.Array, Cache]:
        """Runs prompts x [B, S, D] of int32[B] `lengths` (padding on the right).

        Returns the logits after each prompt, float32[B, V], and a cache that holds `capacity` tokens of each beam.
        """
        batch, size = x.shape[:2]
        valid = (jnp.arange(size)[None] < lengths[:, None]).astype(jnp.int32)
        positions = jnp.tile(jnp.arange(size), (batch, 1))

        def attention(q, k, v, turning, window, _):
            attended = WHOLE_ROWS(q, k, v, turning, valid, positions, window)
            return attended, (rotate(heads(k, turning), turning).swapaxes(1, 2), heads(v, turning).swapaxes(1, 2))

        x, (k, v) = self._run(x, positions, attention, size)
        cache = Cache.empty(k, v, lengths, capacity, beams)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], 1)[:, 0]
        return self.logits(last), cache

    def extend(self, tokens: jax.Array, parents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Appends one token to every beam; beam m of row b continues what beam `parents[b, m]` of that row was.

        tokens, parents int32[B, M] → the next logits float32[B, M, V], and the cache, which must have room for them,
        with the tokens in it.
        """
        visible = jnp.take_along_axis(cache.visible, parents[..., None], 1)
        now = cache.lengths + cache.steps
        positions = jnp.tile(now[:, None], (1, tokens.shape[1]))

        def attention(q, k, v, turning, window, past):
            q, k, v = (heads(one, turning) for one in (q, k, v))
            q, k = rotate(q, turning), rotate(k, turning)
            return attend(q, k, v, cache.seen(past, visible, now, window)), (k.swapaxes(1, 2), v.swapaxes(1, 2))

        past = cache.prompt_k, cache.prompt_v, cache.k, cache.v
        x, (k, v) = self._run(self.embed(tokens), positions, attention, None, past)
        return self.logits(x), cache.with_tokens(k, v, visible, now)
