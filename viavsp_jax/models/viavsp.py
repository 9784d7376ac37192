"""The whole model: clips, or encoder frames of them, and text tokens of packed rows in, logits at labels out.

Letters: B rows, C clips of a row, T frames, S positions, L label positions, E encoder width, D LLM width, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from viavsp_jax.models.attention import WHOLE_ROWS, PackedAttention
from viavsp_jax.models.avhubert.config import PLAIN_TRAINING, AVHubertConfig, EncoderTraining
from viavsp_jax.models.avhubert.encoder import AVHubert, normalized
from viavsp_jax.models.cache import Cache
from viavsp_jax.models.ctc import CTCHead
from viavsp_jax.models.dedup import segment_mean
from viavsp_jax.models.llama import Llama, LlamaConfig, Remat
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.quantize import Quantization


@dataclasses.dataclass(frozen=True)
class CTCConfig:
    """Sizes of the CTC head."""

    units: int  # with the blank
    width: int  # of its hidden layer


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of the whole model, and how it computes."""

    llama: LlamaConfig
    lora: LoRAConfig
    feature_width: int  # E
    dtype: DTypeLike  # that it computes in, and stores those frozen weights in that are not quantised
    quantization: Quantization = "none"
    attention: PackedAttention = WHOLE_ROWS
    encoder: AVHubertConfig | None = None  # None: batches hold its cached features
    encoder_training: EncoderTraining = PLAIN_TRAINING
    ctc: CTCConfig | None = None  # None: no CTC head


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
    """Encoder or its cached features, dedup, projector and LLM.

    `batch` is a dict of arrays as `viavsp_jax.data.pipeline` makes them; with an encoder, those of media.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = config
        if c.encoder is None:
            self.encoder = None
        else:
            self.encoder = AVHubert(c.encoder, dtype=c.dtype, training=c.encoder_training, rngs=rngs)
        self.projector = Projector(c.feature_width, c.llama.hidden_size, rngs)
        self.llm = Llama(c.llama, c.lora, c.dtype, c.quantization, c.attention, rngs=rngs)
        # Last, so that the others begin with the same weights as without it.
        self.ctc = None if c.ctc is None else CTCHead(c.feature_width, c.ctc.width, c.ctc.units, rngs)

    def features(
        self, batch: dict[str, jax.Array], training: bool, key: jax.Array | None, train_encoder: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Frames [B, T, E] of the clips of each row, and the positions int32[B, T] they are averaged into."""
        slots = batch["frame_slot"]
        if self.encoder is None:
            return batch["features"].astype(self.llm.dtype), slots
        padding = slots == batch["tokens"].shape[1]
        # The rest of the batch need not be taken back through an encoder that is not trained.
        hold = (lambda x: x) if train_encoder else jax.lax.stop_gradient
        frames = hold(self.encoder(
            batch["audio"], normalized(batch["video"], padding), padding, batch["has_audio"], batch["has_video"],
            training=training, key=key if train_encoder else None,
        ))  # fmt: skip
        return frames.reshape(len(slots), -1, frames.shape[-1]), slots.reshape(len(slots), -1)

    def embed(
        self,
        batch: dict[str, jax.Array],
        training: bool = False,
        key: jax.Array | None = None,
        train_encoder: bool = False,
    ) -> jax.Array:
        """Input embeddings [B, S, D]: projected segment means where `is_speech`, else token embeddings.

        The mean is taken before the projector: it commutes with an affine map and leaves less to project.
        """
        return self._embed(batch, *self.features(batch, training, key, train_encoder))

    def _embed(self, batch: dict[str, jax.Array], features: jax.Array, slots: jax.Array) -> jax.Array:
        means = segment_mean(features, slots, batch["tokens"].shape[1])
        return jnp.where(batch["is_speech"][..., None], self.projector(means), self.llm.embed(batch["tokens"]))

    def __call__(
        self,
        batch: dict[str, jax.Array],
        key: jax.Array | None = None,
        remat: Remat = "none",
        train_encoder: bool = False,
    ) -> jax.Array:
        """Logits float32[B, L, V] at `label_index`.

        A PRNG key is for training: it turns adapter dropout on and, where the encoder is trained, its dropout too.
        """
        return self.outputs(batch, key, remat, train_encoder)[0]

    def outputs(
        self,
        batch: dict[str, jax.Array],
        key: jax.Array | None = None,
        remat: Remat = "none",
        train_encoder: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """The same, and what `ctc_logits` says of the clips of the rows; None without a CTC head."""
        training = key is not None
        key_llm, key_encoder = jax.random.split(key) if self.encoder is not None and training else (key, None)
        features, slots = self.features(batch, training, key_encoder, train_encoder)
        embedded = self._embed(batch, features, slots)
        ids, positions, labels = (batch[name] for name in ("segment_ids", "positions", "label_index"))
        logits = self.llm.logits(self.llm(embedded, ids, positions, key_llm, remat, labels))
        return logits, None if self.ctc is None else self._ctc_logits(batch, features, slots)

    def ctc_logits(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Of all clips of a batch: logits of units float32[N, U, V], and which frames are padding: bool[N, U].

        A row of a decoding batch is one clip.
        """
        return self._ctc_logits(batch, *self.features(batch, False, None, False))

    def _ctc_logits(
        self, batch: dict[str, jax.Array], features: jax.Array, slots: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        places = batch["frame_slot"] if self.encoder is not None else batch.get("clip_frame", slots[:, None])
        clips, frames = places.shape[0] * places.shape[1], places.shape[2]
        if "clip_frame" in batch:
            padding = places == features.shape[1]
            features = jax.vmap(lambda row, place: row.at[place].get(mode="fill", fill_value=0))(features, places)
        else:
            padding = places == batch["tokens"].shape[1]
        padding = padding.reshape(clips, frames)
        return self.ctc(features.reshape(clips, frames, -1), padding), padding

    def prefill(self, batch: dict[str, jax.Array], capacity: int, beams: int) -> tuple[jax.Array, Cache]:
        """One prompt per row, of int32[B] `lengths` → logits float32[B, V], a cache for `capacity` tokens per beam."""
        return self.llm.prefill(self.embed(batch), batch["lengths"], capacity, beams)

    def extend(self, tokens: jax.Array, parents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """One more token per beam, see `Llama.extend`: int32[B, M] twice → logits float32[B, M, V], longer cache."""
        return self.llm.extend(tokens, parents, cache)
