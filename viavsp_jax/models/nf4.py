"""NF4: frozen kernels stored in 4 bits a weight (QLoRA, arXiv:2305.14314), number for number as bitsandbytes does it.

A kernel is cut into blocks of 64 weights along its inputs. A weight is stored as the nearest of 16 levels times its
block's scale (largest magnitude), a scale as one of 256 levels, in blocks of 256 scales with a float32 scale of their
own. That makes 4 + 8/64 + 32/(64·256) = 4.127 bits a weight.

bitsandbytes gives other bits on other hardware; followed here is its CPU code, to the order of every float32 sum.

Letters: N layers (stacked), I input width, O output width, Q = O·I/64 blocks.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

BLOCK = 64  # weights that share a scale
SCALE_BLOCK = 256  # scales that share a scale

# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero: the levels of a weight.
LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip


def _scale_levels() -> np.ndarray:
    """The 256 levels of a scale, ascending: 0, 1, and ± the centres of 2^k equal parts of [0.1, 1]·10^(k-6), k < 7."""
    levels = [0.0, 1.0]
    for k in range(7):
        # PyTorch's linspace rounds once an element, and counts the upper half from the end.
        step = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(2**k))
        index = np.arange(2**k + 1)
        edges = np.where(index < (2**k + 1) // 2, np.float32(0.1) + step * index, 1 - step * (2**k - index))
        edges = edges.astype(np.float32)
        centres = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (k - 6))
        levels += [*centres, *-centres]
    return np.sort(np.array(levels, np.float32))


SCALE_LEVELS = _scale_levels()


# A scale's level is looked up on a grid of 2^16 points over [-1, 1], so it is not always quite the nearest.
_GRID = 2**16 - 1
_LEVEL_AT = np.searchsorted(
    (SCALE_LEVELS[:-1] + SCALE_LEVELS[1:]) / np.float32(2), np.linspace(-1, 1, _GRID + 1).astype(np.float32)
).astype(np.uint8)


def _sum_in_turn(x: jax.Array) -> jax.Array:
    """Sum over axis 0, first to last."""
    return jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros(x.shape[1:], x.dtype), x)[0]


def _mean(x: jax.Array) -> jax.Array:
    """Mean of float32[Q] with the roundings of PyTorch's CPU kernel: 8 lanes, 4 rows, cascades of 4 levels."""
    lanes = 8 if len(x) >= 8 else 1
    whole = len(x) // lanes
    vectors, rest = x[: whole * lanes].reshape(whole, lanes), x[whole * lanes :]
    rows = vectors[: whole // 4 * 4].reshape(whole // 4, 4, lanes)
    step = 2 ** max(4, math.ceil(math.log2(max(len(rows), 2))) // 4)
    parts = []
    for _ in range(3):
        groups = len(rows) // step
        parts.append(_sum_in_turn(rows[groups * step :]))
        rows = _sum_in_turn(rows[: groups * step].reshape(groups, step, 4, lanes).swapaxes(0, 1))
    cascade = _sum_in_turn(jnp.stack([*parts, _sum_in_turn(rows)]))
    left_over = vectors[whole // 4 * 4 :]
    by_lane = _sum_in_turn(jnp.concatenate([cascade[:1], left_over, cascade[1:]]))
    total = _sum_in_turn(jnp.concatenate([rest, by_lane]))
    # Hidden from XLA, which would multiply by the reciprocal of a constant.
    return total / jax.lax.optimization_barrier(jnp.float32(len(x)))


def _reciprocal(x: jax.Array) -> jax.Array:
    """1 / x, and 0 for numbers too small to have one."""
    normal = x >= jnp.finfo(jnp.float32).tiny
    return jnp.where(normal, 1 / jnp.where(normal, x, 1), 0)


def quantize(kernel: jax.Array) -> dict[str, jax.Array]:
    """One layer's kernel, any float [I, O] → the arrays of `NF4Kernel`, without N."""
    inputs, outputs = kernel.shape
    blocks = kernel.astype(jnp.float32).reshape(inputs // BLOCK, BLOCK, outputs)
    scales = jnp.abs(blocks).max(1)
    scaled = blocks * _reciprocal(scales)[:, None]
    # Halfway between two levels goes down.
    level = sum((scaled > bound).astype(jnp.uint8) for bound in (LEVELS[:-1] + LEVELS[1:]) / np.float32(2))
    pairs = level.reshape(inputs // 2, 2, outputs)

    flat = scales.T.reshape(-1)
    offset = _mean(flat)
    padded = jnp.pad(flat - offset, (0, -len(flat) % SCALE_BLOCK)).reshape(-1, SCALE_BLOCK)
    nested = jnp.abs(padded).max(1)
    scaled = padded * _reciprocal(nested)[:, None]
    grid = ((scaled + 1) * jnp.float32(_GRID / 2) + 0.5).astype(jnp.int32)
    level = jnp.where(nested[:, None] > 0, jnp.asarray(_LEVEL_AT)[grid], 0)
    return {
        "codes": pairs[:, 0] << 4 | pairs[:, 1],
        "scales": level.reshape(-1)[: len(flat)].reshape(outputs, -1).T,
        "nested_scales": nested,
        "offset": offset,
    }


def dequantize(stored: dict[str, jax.Array]) -> jax.Array:
    """The inverse of `quantize`: float32[I, O], exactly the numbers bitsandbytes multiplies with."""
    codes, scales = stored["codes"], stored["scales"]
    count, outputs = scales.shape
    nested = jnp.repeat(stored["nested_scales"], SCALE_BLOCK)[: scales.size].reshape(outputs, count).T
    product = jnp.asarray(SCALE_LEVELS)[scales] * nested
    # The selection keeps compilers from contracting product and sum into one operation with one rounding.
    scales = jnp.where(jnp.isfinite(product), product, 0) + stored["offset"]
    # A tree of selections among the 16 values of a block, since vector units have no fast lookup.
    level = jnp.stack([codes >> 4, codes & 15], 1).reshape(count, BLOCK, outputs)
    values = [value * scales[:, None] for value in LEVELS]
    for bit in range(4):
        odd = (level >> bit & 1).astype(bool)
        values = [jnp.where(odd, b, a) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0].reshape(count * BLOCK, outputs)


@jax.custom_vjp
def project(x: jax.Array, stored: dict[str, jax.Array]) -> jax.Array:
    """x [..., I] @ one layer's kernel, dequantised and rounded to x's dtype → [..., O]; the gradient is of x alone."""
    return x @ dequantize(stored).astype(x.dtype)


def _project_forward(x, stored):
    return project(x, stored), stored


def _project_backward(stored, gradient):
    # Dequantised again: what would be kept are the weights of all layers, in full.
    return gradient @ dequantize(stored).astype(gradient.dtype).T, None


project.defvjp(_project_forward, _project_backward)


class NF4Kernel(nnx.Module):
    """A frozen stack of kernels in 4 bits: one layer of it inside the scan, as every stacked weight."""

    def __init__(self, kernel: jax.Array):
        """kernel: any float [N, I, O]; I must be a multiple of 64."""
        stored = quantize_stack(kernel)
        self.codes = nnx.Param(stored["codes"])  # uint8[N, I/2, O], the even input in the high four bits
        self.scales = nnx.Param(stored["scales"])  # uint8[N, I/64, O]
        self.nested_scales = nnx.Param(stored["nested_scales"])  # float32[N, ⌈Q/256⌉], over [O, I/64] flattened
        self.offset = nnx.Param(stored["offset"])  # float32[N], the mean scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., I] @ the kernel, dequantised and rounded to x's dtype → [..., O]. Called on one layer's slice."""
        return project(x, nnx.to_pure_dict(nnx.state(self)))


def quantize_stack(kernel: jax.Array) -> dict[str, jax.Array]:
    """Any float [N, I, O] → the arrays of `NF4Kernel`, layer by layer: what is float32 meanwhile is one layer."""
    return jax.lax.map(quantize, kernel)


@jax.jit
def round_trip(kernel: jax.Array) -> jax.Array:
    """The kernel a quantised model computes with: any float [..., I, O] → NF4 and back, in the same dtype."""
    stack = kernel.reshape(-1, *kernel.shape[-2:])
    return jax.lax.map(lambda one: dequantize(quantize(one)).astype(one.dtype), stack).reshape(kernel.shape)
