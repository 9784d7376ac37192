"""AV-HuBERT in Flax: mouth video and speech features in, one vector a frame out.

The numbers equal those of the PyTorch encoder (prepare/avhubert_torch.py), and so does the interface. Images are
channels last, transformer blocks are stacked and run by one `lax.scan`. Parameters are float32; activations and
outputs have the dtype the encoder was built with.

Letters: B batch, T frames, D embed_dim, H heads, K head width, F feed-forward width, N blocks, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from viavsp_jax.errors import InputError
from viavsp_jax.models.avhubert_config import AVHubertConfig

EPSILON = 1e-5  # of every normalisation

# What the 3-D convolution of the frontend sees at once.
FRAMES, PIXELS = 5, 7


def over_channels(value: jax.Array) -> jax.Array:
    """[C] → [1, 1, 1, C], to meet images [B·T, h, w, C]."""
    return jnp.expand_dims(value, (0, 1, 2))


class BatchNorm(nnx.Module):
    """Normalises each channel by its running statistics, in float32: [B·T, h, w, C] → the same."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.num_batches = nnx.BatchStat(jnp.int32(0))  # how many the statistics were averaged over

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPSILON)
        normed = (x.astype(jnp.float32) - over_channels(self.mean[...])) * over_channels(scale)
        return (normed + over_channels(self.bias[...])).astype(x.dtype)


class PReLU(nnx.Module):
    """Rectifier with a learned slope below zero for each channel: [B·T, h, w, C] → the same."""

    def __init__(self, channels: int):
        self.slope = nnx.Param(jnp.full(channels, 0.25))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.where(x >= 0, x, x * over_channels(self.slope[...].astype(x.dtype)))


class Frontend(nnx.Module):
    """The 3-D convolution over time and space: [B, T, 88, 88] → [B·T, 22, 22, C].

    It runs as a 2-D convolution over the frame and its four neighbours stacked as channels: convolutions in 2-D
    are what compilers are good at.
    """

    def __init__(self, channels: int, dtype: DTypeLike, rngs: nnx.Rngs):
        shape = (PIXELS, PIXELS, FRAMES, 1, channels)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape, jnp.float32))
        self.norm = BatchNorm(channels)
        self.relu = PReLU(channels)
        self.dtype = dtype

    def __call__(self, video: jax.Array) -> jax.Array:
        batch, frames, height, width = video.shape
        around, margin = FRAMES // 2, PIXELS // 2
        padded = jnp.pad(video.astype(self.dtype), [(0, 0), (around, around), (0, 0), (0, 0)])
        neighbours = jnp.stack([padded[:, first : first + frames] for first in range(FRAMES)], -1)
        x = jax.lax.conv_general_dilated(
            neighbours.reshape(batch * frames, height, width, FRAMES),
            self.kernel[...].astype(self.dtype).reshape(PIXELS, PIXELS, FRAMES, -1),
            window_strides=(2, 2),
            padding=[(margin, margin)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return nnx.max_pool(self.relu(self.norm(x)), (3, 3), (2, 2), [(1, 1), (1, 1)])


class Shortcut(nnx.Module):
    """A 1x1 convolution that brings a block's input to the shape of its output."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = nnx.Conv(in_channels, out_channels, (1, 1), stride, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(out_channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with a shortcut: [B·T, h, w, Cin] → [B·T, h / stride, w / stride, Cout]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        settings = {"dtype": dtype, "rngs": rngs}
        self.conv1 = nnx.Conv(in_channels, out_channels, (3, 3), stride, padding=1, use_bias=False, **settings)
        self.norm1 = BatchNorm(out_channels)
        self.relu1 = PReLU(out_channels)
        self.conv2 = nnx.Conv(out_channels, out_channels, (3, 3), padding=1, use_bias=False, **settings)
        self.norm2 = BatchNorm(out_channels)
        self.relu2 = PReLU(out_channels)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = None if same_shape else Shortcut(in_channels, out_channels, stride, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(x)) + shortcut)


class Stage(nnx.Module):
    """Two blocks of one width; the first may halve the image."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.block1 = BasicBlock(in_channels, out_channels, stride, dtype, rngs)
        self.block2 = BasicBlock(out_channels, out_channels, 1, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.block2(self.block1(x))


class VideoExtractor(nnx.Module):
    """Frontend, then a ResNet-18 without stem and classifier on every frame: [B, T, 88, 88] → [B, T, D]."""

    def __init__(self, config: AVHubertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        first, second, third, fourth = config.resnet_channels
        self.frontend = Frontend(config.frontend_channels, dtype, rngs)
        self.stage1 = Stage(config.frontend_channels, first, 1, dtype, rngs)
        self.stage2 = Stage(first, second, 2, dtype, rngs)
        self.stage3 = Stage(second, third, 2, dtype, rngs)
        self.stage4 = Stage(third, fourth, 2, dtype, rngs)
        self.proj = nnx.Linear(fourth, config.embed_dim, dtype=dtype, rngs=rngs)

    def __call__(self, video: jax.Array) -> jax.Array:
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.frontend(video)))))
        return self.proj(x.mean((1, 2)).reshape(*video.shape[:2], -1))


class PositionalConv(nnx.Module):
    """Grouped convolution over time and GELU, [B, T, D] → the same.

    The kernel is weight-normed: `v` gives its direction and `g` one norm for each of its taps.
    """

    def __init__(self, config: AVHubertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width, taps, self.groups = config.embed_dim, config.conv_pos, config.conv_pos_groups
        shape = (taps, width // self.groups, width)
        v = jax.random.normal(rngs.params(), shape) * (4 / (taps * width)) ** 0.5
        self.v = nnx.Param(v)
        self.g = nnx.Param(jnp.linalg.norm(v, axis=(1, 2), keepdims=True))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        v = self.v[...]
        kernel = v * (self.g[...] / jnp.linalg.norm(v, axis=(1, 2), keepdims=True))
        taps = len(kernel)
        x = jax.lax.conv_general_dilated(
            x,
            kernel.astype(self.dtype),
            window_strides=(1,),
            # As many frames out as in; an even kernel sees one more frame before than after.
            padding=[(taps // 2, (taps - 1) // 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return jax.nn.gelu(x + self.bias[...].astype(self.dtype)[None, None], approximate=False)


def layer_norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32 with PyTorch's epsilon and its two-pass variance."""
    return nnx.LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """Self-attention and feed-forward over [B, T, D], each with a residual, pre-LN or post-LN."""

    def __init__(self, config: AVHubertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width, settings = config.embed_dim, {"dtype": dtype, "rngs": rngs}
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

    def feed_forward(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))

    def __call__(self, x: jax.Array, attended: jax.Array | None) -> jax.Array:
        if self.norm_first:
            x = x + self.attend(self.attention_norm(x), attended)
            return x + self.feed_forward(self.ffn_norm(x))
        x = self.attention_norm(x + self.attend(x, attended))
        return self.ffn_norm(x + self.feed_forward(x))


class AVHubert(nnx.Module):
    """The encoder, in evaluation mode: no dropout, BatchNorm by its running statistics."""

    def __init__(self, config: AVHubertConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.audio = nnx.Linear(config.audio_dim, config.embed_dim, dtype=dtype, rngs=rngs)
        self.video = VideoExtractor(config, dtype, rngs)
        self.fusion_norm = layer_norm(config.fused_dim, dtype, rngs)
        if config.modality_fuse == "concat":
            self.fusion_proj = nnx.Linear(config.fused_dim, config.embed_dim, dtype=dtype, rngs=rngs)
        else:
            self.fusion_proj = None
        self.positional_conv = PositionalConv(config, dtype, rngs)
        # Each weight of all N blocks, stacked on axis 0.
        make_blocks = nnx.split_rngs(splits=config.num_layers)(nnx.vmap(lambda rngs: Block(config, dtype, rngs)))
        self.blocks = make_blocks(rngs)
        self.transformer_norm = layer_norm(config.embed_dim, dtype, rngs)

    def video_features(self, video: jax.Array) -> jax.Array:
        """Normalised grey frames, float[B, T, 88, 88] → [B, T, D].

        Padding must be zeros: then the frames of a padded clip get the features of the clip alone.
        """
        return self.video(video)

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

        Raises InputError if there is no such layer.
        """
        if layer is not None and not 0 <= layer <= self.config.num_layers:
            raise InputError(f"layer {layer}: the AV-HuBERT encoder has layers 0 to {self.config.num_layers}")
        x, attended = self.fuse(audio, video), None
        if padding_mask is not None:
            x = jnp.where(padding_mask[..., None], 0, x)
            attended = ~padding_mask[:, None, None, :]
        # Carried along rather than taken between two scans: slices of the stack would be copies of all weights.
        kept = None if layer is None else x
        x = self.position(x)
        graph, params = nnx.split(self.blocks)

        def step(carry, inputs):
            x, kept = carry
            number, params = inputs
            x = nnx.merge(graph, params)(x, attended)
            return (x, kept if layer is None else jnp.where(number == layer, x, kept)), None

        numbers = jnp.arange(1, self.config.num_layers + 1)
        (x, kept), _ = jax.lax.scan(step, (x, kept), (numbers, params))
        return kept, self.transformer_norm(x) if self.config.layer_norm_first else x

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
