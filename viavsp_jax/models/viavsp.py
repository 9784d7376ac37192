"""The whole model: encoder frames and text tokens of packed rows in, logits at the label positions out.

Letters: B rows, T frames, S positions, L label positions, E encoder width, D LLM width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from viavsp_jax.models.attention import WHOLE_ROWS, PackedAttention
from viavsp_jax.models.cache import Cache
from viavsp_jax.models.dedup import segment_mean
from viavsp_jax.models.llama import Llama, LlamaConfig, Remat
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.quantize import Quantization


class Projector(nnx.Module):
    """Affine map from the encoder's space to the LLM's embeddings, float32 weights, torch's default init."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        bound = inputs**-0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (inputs, outputs), jnp.float32, -bound, bound))
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (outputs,), jnp.float32, -bound, bound))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, E] → [B, S, D] in x's dtype."""
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)[None, None]


class ViAVSP(nnx.Module):
    """Dedup, projector and LLM. `batch` is a dict of arrays as `viavsp_jax.data.pipeline` makes them."""

    def __init__(
        self,
        llama: LlamaConfig,
        lora: LoRAConfig,
        feature_width: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        quantization: Quantization = "none",
        attention: PackedAttention = WHOLE_ROWS,
        rngs: nnx.Rngs,
    ):
        self.projector = Projector(feature_width, llama.hidden_size, rngs)
        frozen = {"param_dtype": param_dtype, "quantization": quantization}
        self.llm = Llama(llama, lora, dtype=dtype, attention=attention, rngs=rngs, **frozen)

    def embed(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Input embeddings [B, S, D]: projected segment means where `is_speech`, else token embeddings.

        The mean is taken before the projector: it commutes with an affine map and leaves less to project.
        """
        means = segment_mean(batch["features"].astype(self.llm.dtype), batch["frame_slot"], batch["tokens"].shape[1])
        return jnp.where(batch["is_speech"][..., None], self.projector(means), self.llm.embed(batch["tokens"]))

    def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, remat: Remat = "none") -> jax.Array:
        """Logits float32[B, L, V] at `label_index`. A PRNG key turns adapter dropout on (training)."""
        hidden = self.llm(self.embed(batch), batch["segment_ids"], batch["positions"], key, remat)
        at_labels = jnp.take_along_axis(hidden, batch["label_index"][..., None], 1)
        return self.llm.logits(at_labels)

    def prefill(self, batch: dict[str, jax.Array], room: int, beams: int) -> tuple[jax.Array, Cache]:
        """Prompts, one a row, of int32[B] `lengths` → logits float32[B, V] and a cache for `room` tokens a beam."""
        return self.llm.prefill(self.embed(batch), batch["lengths"], room, beams)

    def extend(self, tokens: jax.Array, parents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """One more token a beam, see `Llama.extend`: int32[B, M] twice → logits float32[B, M, V], longer cache."""
        return self.llm.extend(tokens, parents, cache)
