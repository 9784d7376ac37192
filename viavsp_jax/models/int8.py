"""INT8: frozen kernels stored in 8 bits a weight, with one scale for each output: w ≈ code · scale, -127 ≤ code ≤ 127.

A product with a kernel is x @ codes, times the scales: they belong to outputs, so they need not be multiplied into the
weights. XLA turns codes into x's dtype on their way from memory to the matrix unit; what a step of decoding waits for,
reading weights, is halved against bfloat16.

Letters: N layers (stacked), I input width, O output width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

LARGEST = 127  # so that codes are symmetric about 0


def quantize(kernel: jax.Array) -> dict[str, jax.Array]:
    """One layer's kernel, any float [I, O] → the arrays of `Int8Kernel`, without N. Outputs of zeros get scale 0."""
    kernel = kernel.astype(jnp.float32)
    scales = jnp.abs(kernel).max(0, keepdims=True) * jnp.float32(1 / LARGEST)
    codes = jnp.round(kernel / jnp.where(scales > 0, scales, 1))  # halves go to the even neighbour
    return {"codes": codes.astype(jnp.int8), "scales": scales}


def quantize_stack(kernel: jax.Array) -> dict[str, jax.Array]:
    """Any float [N, I, O] → the arrays of `Int8Kernel`, layer by layer: what is float32 meanwhile is one layer."""
    return jax.lax.map(quantize, kernel)


@jax.custom_vjp
def project(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """x [..., I] @ (int8[I, O] · float32[1, O]) → [..., O] in x's dtype; products are summed and scaled in float32.

    The gradient is of x alone.
    """
    product = jnp.matmul(x, codes.astype(x.dtype), preferred_element_type=jnp.float32)
    return (product * scales[0].reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def _project_forward(x, codes, scales):
    # Kept for the backward pass are codes, which are there anyway: left to itself, JAX keeps them in x's dtype.
    return project(x, codes, scales), (codes, scales)


def _project_backward(kept, gradient):
    codes, scales = kept
    scaled = gradient * scales[0].reshape((1,) * (gradient.ndim - 1) + (-1,))
    return scaled.astype(gradient.dtype) @ codes.T.astype(gradient.dtype), None, None


project.defvjp(_project_forward, _project_backward)


class Int8Kernel(nnx.Module):
    """A frozen stack of kernels in 8 bits: one layer of it inside the scan, as every stacked weight."""

    def __init__(self, kernel: jax.Array):
        """kernel: any float [N, I, O]."""
        stored = quantize_stack(kernel)
        self.codes = nnx.Param(stored["codes"])  # int8[N, I, O]
        self.scales = nnx.Param(stored["scales"])  # float32[N, 1, O]

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., I] @ the kernel → [..., O] in x's dtype. Called on one layer's slice."""
        return project(x, self.codes[...], self.scales[...])
