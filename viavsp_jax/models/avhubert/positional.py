"""AV-HuBERT's positional convolution in Flax: grouped, over time, with a kernel of more frames than most clips have.

Letters: B clips, T frames, D embed_dim; in a group, I input and O output channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from viavsp_jax.models.avhubert.config import AVHubertConfig

# Frames computed at once. Of each of them a group has 64 channels, half as many as a TPU's matrix unit is wide; the
# price are 4 taps more than 128.
BLOCK = 4


def weight_norm(v: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel [taps, D / groups, D] that has v's direction and, tap by tap, the norms g, [taps, 1, 1]."""
    return v * (g / jnp.linalg.norm(v, axis=(1, 2), keepdims=True))


def _products(x: jax.Array, kernel: jax.Array, before: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The convolution as one product: of each block of frames, all that it sees times a kernel for each of its frames.

    A gradient of XLA's convolutions would take four times as long on a CPU.
    """
    taps, frames = len(kernel), x.shape[1]
    # Blocks that come out, and how many of those that go in each of them sees.
    blocks, seen = -(-frames // BLOCK), -(-(taps + BLOCK - 1) // BLOCK)
    total = (blocks + seen - 1) * BLOCK
    x = jnp.pad(x, [(0, 0), (before, total - before - frames), (0, 0)]).reshape(len(x), total // BLOCK, -1)
    windows = jnp.concatenate([x[:, first : first + blocks] for first in range(seen)], -1)
    later = [(frame, seen * BLOCK - taps - frame) for frame in range(BLOCK)]
    kernels = jnp.concatenate([jnp.pad(kernel, [place, (0, 0), (0, 0)]) for place in later], -1)
    y = jnp.matmul(windows, kernels.reshape(windows.shape[-1], -1), preferred_element_type=dtype)
    return y.reshape(len(x), blocks * BLOCK, -1)[:, :frames]


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of [B, T, I] over time with a kernel [taps, I, O] → float32[B, T, O]; in the middle of the kernel is
    the frame itself, or of the two there the later one.

    The gradient of x is the same convolution backwards, whose sums are float32 too.
    """
    return _products(x, kernel, len(kernel) // 2)


def _convolve_backward(inputs: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = inputs
    gradient = gradient.astype(x.dtype)
    to_x = _products(gradient, kernel[::-1].swapaxes(1, 2), (len(kernel) - 1) // 2)
    # Windows are large: they are made again.
    (to_kernel,) = jax.vjp(lambda kernel: _products(x, kernel, len(kernel) // 2, x.dtype), kernel)[1](gradient)
    return to_x.astype(x.dtype), to_kernel


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _convolve_backward)


class PositionalConv(nnx.Module):
    """Grouped convolution over time and GELU, [B, T, D] → the same.

    The kernel is weight-normed, or a plain one with `fold`, which is enough where nothing is trained.
    """

    def __init__(self, config: AVHubertConfig, dtype: DTypeLike, fold: bool, rngs: nnx.Rngs):
        width, taps, self.groups = config.embed_dim, config.conv_pos, config.conv_pos_groups
        shape = (taps, width // self.groups, width)
        v = jax.random.normal(rngs.params(), shape) * (4 / (taps * width)) ** 0.5
        self.fold = fold
        if fold:
            self.kernel = nnx.Param(v)
        else:
            self.v = nnx.Param(v)
            self.g = nnx.Param(jnp.linalg.norm(v, axis=(1, 2), keepdims=True))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...] if self.fold else weight_norm(self.v[...], self.g[...])

        def groups_first(x):
            return jnp.moveaxis(x.reshape(*x.shape[:2], self.groups, -1), 2, 0)

        # One group at a time: of a grouped convolution XLA would compute all clips on every device.
        inputs = groups_first(x), groups_first(kernel.astype(self.dtype))
        y = jnp.moveaxis(jax.lax.map(lambda group: convolve(*group), inputs), 0, 2).reshape(x.shape)
        return jax.nn.gelu(y + self.bias[...][None, None], approximate=False).astype(self.dtype)
