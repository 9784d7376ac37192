"""The video half of AV-HuBERT in Flax: mouth video in, one vector a frame out.

Images are channels last. Parameters and statistics are float32; activations have the dtype the encoder was built with.

Letters: B clips, T frames, D embed_dim, C channels; in training, R rows of S clips.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from viavsp_jax.models.avhubert.config import AVHubertConfig

EPSILON = 1e-5  # of every normalisation
MOMENTUM = 0.1  # of the running averages

# Of each row in training, at once, as near as whole clips come. Along the 128 lanes of its registers a TPU has the
# frames of such images: those of one VASR clip, 76, leave two fifths of them idle, those of three a tenth.
FRAMES_AT_ONCE = 3 * 76

# What the 3-D convolution of the frontend sees at once.
FRAMES, PIXELS = 5, 7


def over_channels(value: jax.Array) -> jax.Array:
    """[C] → [1, 1, 1, C], to meet images [B·T, h, w, C]."""
    return jnp.expand_dims(value, (0, 1, 2))


class BatchNorm(nnx.Module):
    """Normalises each channel, in float32: by its running statistics, or each clip by its own.

    The reference trains on one clip at a time, so that the statistics of its batches are those of single clips.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.num_batches = nnx.BatchStat(jnp.int32(0))  # how many the statistics were averaged over

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """[B·T, h, w, C] → the same.

        With `real`, bool[B, T], each clip is normalised by the statistics of its frames where that is True, and the
        running ones, [C], make way for what each clip would add to their average, [B, C].
        """
        x32 = x.astype(jnp.float32)
        if real is None:
            mean, var = over_channels(self.mean[...]), over_channels(self.var[...])
        else:
            mean, var = self.measure(x32, real)
        scale = over_channels(self.scale[...]) * jax.lax.rsqrt(var + EPSILON)
        return ((x32 - mean) * scale + over_channels(self.bias[...])).astype(x.dtype)

    def measure(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of the clip that a frame belongs to, [B·T, 1, 1, C] each.

        They are the running ones for clips without real frames, whose features nobody reads: a variance of zero would
        let them grow from layer to layer until they are infinite, and their gradient is zero only if they are finite.
        """
        clips, frames = real.shape
        count = real.sum(1, keepdims=True) * x.shape[1] * x.shape[2]

        def average(x):
            x = jnp.where(real.reshape(-1, 1, 1, 1), x, 0).reshape(clips, -1, x.shape[-1])
            return x.sum(1) / jnp.maximum(count, 1)

        def for_frames(values):
            return jnp.expand_dims(jnp.repeat(values, frames, 0), (1, 2))

        mean = average(x)
        var = average(jnp.square(x - for_frames(mean)))
        running_mean, running_var = self.mean[...][None], self.var[...][None]
        # PyTorch normalises by the biased variance and averages the unbiased one.
        self.mean.set_value(jax.lax.stop_gradient(mean))
        self.var.set_value(jax.lax.stop_gradient(var * (count / jnp.maximum(count - 1, 1))))
        return for_frames(jnp.where(count > 0, mean, running_mean)), for_frames(jnp.where(count > 0, var, running_var))


def together(x: jax.Array) -> jax.Array:
    """[R, S, T, ...] → [steps, R · clips of a step, T, ...]: in a step a few of each row, some of them zeros."""
    rows, clips, frames = x.shape[:3]
    steps = -(-clips // max(1, round(FRAMES_AT_ONCE / frames)))
    of_step = -(-clips // steps)
    x = jnp.pad(x, [(0, 0), (0, steps * of_step - clips), *[(0, 0)] * (x.ndim - 2)])
    return x.reshape(rows, steps, of_step, *x.shape[2:]).swapaxes(0, 1).reshape(steps, rows * of_step, *x.shape[2:])


def apart(x: jax.Array, rows: int, clips: int) -> jax.Array:
    """The way back of `together`, to [R, S, ...]."""
    x = x.reshape(len(x), rows, -1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(rows, -1, *x.shape[3:])[:, :clips]


def averaged(running: nnx.State, clips: nnx.State, counted: jax.Array) -> nnx.State:
    """Running statistics after one clip after the other, row by row, was averaged into them.

    Args:
      running: statistics [C] and their counters.
      clips: those of the clips, as `together` lays them out, [steps, R · clips of a step, C]; counters do not matter.
      counted: bool[R, S], the clips that take part.
    """
    later = counted.sum() - jnp.cumsum(counted).reshape(counted.shape)  # how many clips come after this one
    weights = jnp.where(counted, MOMENTUM * (1 - MOMENTUM) ** later, 0)[..., None]

    def one(running, clips):
        if jnp.issubdtype(running.dtype, jnp.integer):
            return running + counted.sum()
        return (1 - MOMENTUM) ** counted.sum() * running + (weights * apart(clips, *counted.shape)).sum((0, 1))

    return jax.tree.map(one, running, clips)


class PReLU(nnx.Module):
    """Rectifier with a learned slope below zero for each channel: [B·T, h, w, C] → the same."""

    def __init__(self, channels: int):
        self.slope = nnx.Param(jnp.full(channels, 0.25))

    def __call__(self, x: jax.Array) -> jax.Array:
        # In float32, for the sake of the slope's gradient, which sums over all frames and pixels.
        return jnp.where(x >= 0, x, (x * over_channels(self.slope[...])).astype(x.dtype))


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

    def __call__(self, video: jax.Array, real: jax.Array | None = None) -> jax.Array:
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
        return nnx.max_pool(self.relu(self.norm(x, real)), (3, 3), (2, 2), [(1, 1), (1, 1)])


class Shortcut(nnx.Module):
    """A 1x1 convolution that brings a block's input to the shape of its output."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = nnx.Conv(in_channels, out_channels, (1, 1), stride, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(out_channels)

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        return self.norm(self.conv(x), real)


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

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        shortcut = x if self.shortcut is None else self.shortcut(x, real)
        x = self.relu1(self.norm1(self.conv1(x), real))
        return self.relu2(self.norm2(self.conv2(x), real) + shortcut)


class Stage(nnx.Module):
    """Two blocks of one width; the first may halve the image."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.block1 = BasicBlock(in_channels, out_channels, stride, dtype, rngs)
        self.block2 = BasicBlock(out_channels, out_channels, 1, dtype, rngs)

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        return self.block2(self.block1(x, real), real)


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

    def __call__(self, video: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """`real` as in BatchNorm: None for its running statistics."""
        x = self.frontend(video, real)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x, real)
        return self.proj(x.mean((1, 2)).reshape(*video.shape[:2], -1))

    def clip_by_clip(self, video: jax.Array, real: jax.Array | None, unroll: bool = False) -> jax.Array:
        """[R, S, T, 88, 88] → [R, S, T, D], a few clips of every row at a time.

        With `real`, bool[R, S, T], clips are normalised by their own statistics, and those with a real frame are
        averaged into the running ones.

        Activations of Large take some hundred megabytes a clip: the backward pass computes them again, so that there
        are never those of more than a few. The loop is along S, for rows lie on different devices. `unroll` is for
        CPUs: inside loops XLA leaves the convolutions of gradients in a form that takes twenty times as long there.
        """
        graph, params, running = nnx.split(self, nnx.Param, nnx.BatchStat)

        def one(_, inputs):
            extractor = nnx.merge(graph, params, running, copy=True)
            return None, (extractor(*inputs), nnx.state(extractor, nnx.BatchStat))

        rows, clips = video.shape[:2]
        one = jax.checkpoint(one, prevent_cse=False)
        _, (features, measured) = jax.lax.scan(one, None, jax.tree.map(together, (video, real)), unroll=unroll)
        if real is not None:
            nnx.update(self, averaged(running, measured, real.any(-1)))
        return apart(features, rows, clips)
