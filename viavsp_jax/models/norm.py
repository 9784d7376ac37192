"""Root-mean-square norms (arXiv:1910.07467).

Letters: D width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class RMSNorm(nnx.Module):
    """x / rms(x) · scale, the rms in float32; with `unit_offset` x / rms(x) · (1 + scale), all of it in float32."""

    def __init__(self, shape: tuple[int, ...], eps: float, unit_offset: bool, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.eps, self.unit_offset = eps, unit_offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] → [..., D] in x's dtype."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + self.scale.shape)
        if self.unit_offset:
            return (normed * (1 + scale.astype(jnp.float32))).astype(x.dtype)
        return normed.astype(x.dtype) * scale.astype(x.dtype)
