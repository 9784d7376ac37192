"""AV-HuBERT in Flax: mouth video and speech features in, one vector a frame out.

The numbers and the interface equal those of the PyTorch encoder (prepare/features/modeling_avhubert.py). Transformer
blocks are stacked and run by one `lax.scan`. Parameters are float32; activations and outputs have the dtype that the
encoder was built with. Nothing inside a block is kept for the backward pass, which computes it again.

Letters: B clips, T frames, D embed_dim, F feed-forward width, N blocks; in training, R rows of S clips.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from viavsp_jax.models.avhubert.config import PLAIN_TRAINING, VIDEO_MEAN, VIDEO_STD, AVHubertConfig, EncoderTraining
from viavsp_jax.models.avhubert.positional import PositionalConv
from viavsp_jax.models.avhubert.video import EPSILON, VideoExtractor
from viavsp_jax.models.dropout import dropout


def normalized(video: jax.Array, padding_mask: jax.Array) -> jax.Array:
    """Grey frames uint8[..., T, 88, 88] → the encoder's input, float32; zeros where `padding_mask`, bool[..., T]."""
    normed = (video.astype(jnp.float32) / 255 - VIDEO_MEAN) / VIDEO_STD
    return jnp.where(padding_mask[..., None, None], 0, normed)


def unseen_as_padding(video: jax.Array, seen: jax.Array) -> jax.Array:
    """Normalised frames [..., T, 88, 88] with zeros where bool[..., T] `seen` is False: no neighbour sees them."""
    return jnp.where(seen[..., None, None], video, 0)


def layer_norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32 with PyTorch's epsilon and its two-pass variance."""
    return nnx.LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """Self-attention and feed-forward over [B, T, D], each with a residual, pre-LN or post-LN."""

    def __init__(self, config: AVHubertConfig, activation_dropout: float, dtype: DTypeLike, rngs: nnx.Rngs):
        width, settings = config.embed_dim, {"dtype": dtype, "rngs": rngs}
        self.activation_dropout = activation_dropout
        self.num_heads = config.num_heads
        self.norm_first = config.layer_norm_first
        self.attention_norm = layer_norm(width, **settings)
        self.q = nnx.Linear(width, width, **settings)
        self.k = nnx.Linear(width, width, **settings)
        self.v = nnx.Linear(width, width, **settings)
        self.o = nnx.Linear(width, width, **settings)
        self.ffn_norm = layer_norm(width, **settings)
        self.up = nnx.Linear(width, config.ffn_dim, **settings)
        self.down = nnx.Linear(config.ffn_dim, width, **settings)

    def attend(self, x: jax.Array, attended: jax.Array | None) -> jax.Array:
        """Self-attention; `attended` bool[B, 1, 1, T] is False at padded keys."""
        q, k, v = (proj(x).reshape(*x.shape[:2], self.num_heads, -1) for proj in (self.q, self.k, self.v))
        return self.o(jax.nn.dot_product_attention(q, k, v, mask=attended).reshape(x.shape))

    def feed_forward(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        hidden = jax.nn.gelu(self.up(x), approximate=False)
        return self.down(hidden if key is None else dropout(hidden, self.activation_dropout, key))

    def __call__(self, x: jax.Array, attended: jax.Array | None, key: jax.Array | None = None) -> jax.Array:
        """A PRNG key turns dropout on."""
        if self.norm_first:
            x = x + self.attend(self.attention_norm(x), attended)
            return x + self.feed_forward(self.ffn_norm(x), key)
        x = self.attention_norm(x + self.attend(x, attended))
        return self.ffn_norm(x + self.feed_forward(x, key))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def run_unless(drop, run, params, x, *constants):
    """`run(params, x, *constants)`, or x alone where bool[] `drop`; gradients are those of params and x.

    Differentiated by JAX, a `cond` would hand all activations to the backward pass, zeros in their place where x stays
    as it is. Here the branch of the backward pass makes them again.
    """
    return jax.lax.cond(drop, lambda params, x, *constants: x, run, params, x, *constants)


def _run_unless_forward(drop, run, params, x, *constants):
    return run_unless(drop, run, params, x, *constants), (drop, params, x, constants)


def _run_unless_backward(run, saved, gradient):
    drop, params, x, constants = saved

    def without(params, x, gradient, *constants):
        return jax.tree.map(jnp.zeros_like, params), gradient

    def through(params, x, gradient, *constants):
        return jax.vjp(lambda params, x: run(params, x, *constants), params, x)[1](gradient)

    gradients = jax.lax.cond(drop, without, through, params, x, gradient, *constants)
    return None, *gradients, *(None for _ in constants)


run_unless.defvjp(_run_unless_forward, _run_unless_backward)


class AVHubert(nnx.Module):
    """The encoder. What `training` says holds for calls that ask for it; all others are evaluation."""

    def __init__(
        self,
        config: AVHubertConfig,
        training: EncoderTraining = PLAIN_TRAINING,
        *,
        dtype: DTypeLike,
        fold: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.training = training
        self.dtype = dtype
        self.audio = nnx.Linear(config.audio_dim, config.embed_dim, dtype=dtype, rngs=rngs)
        self.video = VideoExtractor(config, dtype, rngs)
        self.fusion_norm = layer_norm(config.fused_dim, dtype, rngs)
        if config.modality_fuse == "concat":
            self.fusion_proj = nnx.Linear(config.fused_dim, config.embed_dim, dtype=dtype, rngs=rngs)
        else:
            self.fusion_proj = None
        self.positional_conv = PositionalConv(config, dtype, fold, rngs)
        # Each weight of all N blocks, stacked on axis 0.
        make_blocks = nnx.vmap(lambda rngs: Block(config, training.activation_dropout, dtype, rngs))
        self.blocks = nnx.split_rngs(splits=config.num_layers)(make_blocks)(rngs)
        self.transformer_norm = layer_norm(config.embed_dim, dtype, rngs)

    def video_features(self, video: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """Normalised grey frames, float[B, T, 88, 88] → [B, T, D].

        Padding must be zeros: then the frames of a padded clip get the features of the clip alone. What is not seen,
        where bool[B, T] `seen` is False, is like padding to its neighbours, and zeros itself, as a missing modality.
        """
        if seen is None:
            return self.video(video)
        return jnp.where(seen[..., None], self.video(unseen_as_padding(video, seen)), 0)

    def audio_features(self, audio: jax.Array) -> jax.Array:
        """Stacked filterbank values, float[B, T, audio_dim] → [B, T, D]."""
        return self.audio(audio)

    def encode(
        self,
        audio: jax.Array | None,
        video: jax.Array | None,
        padding_mask: jax.Array | None = None,
        layer: int | None = None,
    ) -> tuple[jax.Array | None, jax.Array]:
        """Encodes one or both modalities.

        Args:
          audio: what audio_features returned, [B, T, D], or None: the modality is missing.
          video: what video_features returned, [B, T, D], or None: the modality is missing.
          padding_mask: bool[B, T], True at padded frames.
          layer: the block, counted from 1, whose raw output is wanted too; 0 is the input of the transformer.

        Returns:
          ([B, T, D] of that layer or None, [B, T, D] of the last, normed). Padded frames hold no meaning.

        Raises ValueError if there is no such layer.
        """
        if layer is not None and not 0 <= layer <= self.config.num_layers:
            raise ValueError(f"layer {layer}: the AV-HuBERT encoder has layers 0 to {self.config.num_layers}")
        return self.transform(self.fuse(audio, video), padding_mask, layer)

    def __call__(
        self,
        audio: jax.Array,
        video: jax.Array,
        padding_mask: jax.Array,
        has_audio: jax.Array,
        has_video: jax.Array,
        *,
        training: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes all clips of packed rows, with whichever modalities each of them has; it can be differentiated.

        Args:
          audio: stacked filterbank values, float[R, S, T, audio_dim].
          video: normalised grey frames, float[R, S, T, 88, 88], zeros where padded.
          padding_mask: bool[R, S, T], True at padded frames; clips may be all padding.
          has_audio: bool[R, S].
          has_video: bool[R, S, T], the frames that are seen. What a clip lacks is read, but has no effect.
          training: whether BatchNorm may use each clip's own statistics. If it does, the nnx.BatchStat variables hold
            the new running averages after the call.
          key: a PRNG key, which turns layer-drop and dropout on.

        Returns:
          [R, S, T, D] of the last layer, normed. Padded frames hold no meaning.
        """
        own_statistics = training and self.training.batch_norm == "batch"
        video = self.video.clip_by_clip(
            unseen_as_padding(video, has_video), ~padding_mask & has_video if own_statistics else None,
            self.training.unroll,
        )  # fmt: skip
        audio, video = (
            # The reference puts zeros behind the extractor, whose bias would show otherwise.
            jnp.where(present[..., None], features, 0).reshape(-1, *features.shape[2:])
            for present, features in ((has_audio[..., None], self.audio(audio)), (has_video, video))
        )
        mask = padding_mask.reshape(len(audio), -1)
        return self.transform(self.fuse(audio, video), mask, key=key)[1].reshape(*padding_mask.shape, -1)

    def transform(
        self, x: jax.Array, padding_mask: jax.Array | None, layer: int | None = None, key: jax.Array | None = None
    ) -> tuple[jax.Array | None, jax.Array]:
        """What `fuse` returned, [B, T, D], through the transformer; the rest as in `encode` and `__call__`."""
        attended, drops, keys = None, None, None
        if padding_mask is not None:
            x = jnp.where(padding_mask[..., None], 0, x)
            attended = ~padding_mask[:, None, None, :]
        if key is not None:
            drop_key, key = jax.random.split(key)
            keys = jax.random.split(key, self.config.num_layers)
            if self.training.layer_drop:
                drops = jax.random.bernoulli(drop_key, self.training.layer_drop, keys.shape)
        # Carried along rather than taken between two scans: slices of the stack would be copies of all weights.
        kept = None if layer is None else x
        x = self.position(x)
        graph, params = nnx.split(self.blocks)

        def run(params, x, attended, key):
            return nnx.merge(graph, params)(x, attended, key)

        def step(carry, inputs):
            x, kept = carry
            number, params, drop, key = inputs
            x = run(params, x, attended, key) if drop is None else run_unless(drop, run, params, x, attended, key)
            return (x, kept if layer is None else jnp.where(number == layer, x, kept)), None

        numbers = jnp.arange(1, self.config.num_layers + 1)
        # Inside a scan there are no common subexpressions to keep apart.
        step = jax.checkpoint(step, prevent_cse=False)
        (x, kept), _ = jax.lax.scan(step, (x, kept), (numbers, params, drops, keys))
        normed = self.config.layer_norm_first and self.config.final_norm
        return kept, self.transformer_norm(x) if normed else x

    def fuse(self, audio: jax.Array | None, video: jax.Array | None) -> jax.Array:
        """Features of both modalities, or of one with zeros for the other, → the transformer's input [B, T, D]."""
        present = audio if audio is not None else video
        if present is None:
            raise ValueError("encode needs audio, video or both")
        audio = jnp.zeros_like(present) if audio is None else audio
        video = jnp.zeros_like(present) if video is None else video
        if self.fusion_proj is None:
            return self.fusion_norm(audio + video)
        return self.fusion_proj(self.fusion_norm(jnp.concatenate([audio, video], -1)))

    def position(self, x: jax.Array) -> jax.Array:
        """Adds the positional convolution: what the first block gets, [B, T, D]."""
        x = x + self.positional_conv(x)
        return x if self.config.layer_norm_first else self.transformer_norm(x)
