"""Low-rank adapters (LoRA, arXiv:2106.09685) beside frozen projections.

Letters: N layers (stacked), I input width, O output width, R rank.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from viavsp_jax.models.quantize import NF4Kernel, Quantization


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Adapter shape, in peft's terms: the update is alpha / rank · B A x."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / self.rank


_PARTS = 1 << 10  # of which a rate is a whole number; three masks of 10 bits fit a random word of 32


def three_dropouts(x: jax.Array, rate: float, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three independent dropouts of x, any shape and dtype, for three adapters on one input.

    One random word serves all three: words are what dropout costs. Who keeps what is a bit for each adapter, which
    `jax.checkpoint` knows as "kept". The rate is rounded to a multiple of 1/1024, and the kept values are scaled by
    what it is rounded to, so that the expectation is x.
    """
    dropped = round(rate * _PARTS)
    if dropped == 0:
        return x, x, x
    words = jax.random.bits(key, x.shape)
    kept = [((words >> 10 * n) % _PARTS >= dropped).astype(jnp.uint8) << n for n in range(3)]
    kept = checkpoint_name(kept[0] | kept[1] | kept[2], "kept")
    scaled = x / (1 - dropped / _PARTS)
    return tuple(jnp.where(kept >> n & 1, scaled, 0) for n in range(3))


class LoRA(nnx.Module):
    """One adapter, or a stack of N of them when built with `stack`; float32 weights.

    `a` starts uniform in ±1/sqrt(I) (peft's Kaiming-uniform with slope √5) and `b` at zero, so that a new
    adapter changes nothing.
    """

    def __init__(self, config: LoRAConfig, inputs: int, outputs: int, *, stack: int, rngs: nnx.Rngs):
        bound = inputs**-0.5
        shape = (stack, inputs, config.rank)
        self.a = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))
        self.b = nnx.Param(jnp.zeros((stack, config.rank, outputs), jnp.float32))
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., I] → [..., O] in x's dtype."""
        # As a matrix: gradients of weights that sum over two axes would copy x and the output's gradient transposed.
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ self.a[...].astype(x.dtype) * self.config.scale
        return (low @ self.b[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)


class Linear(nnx.Module):
    """A frozen bias-free projection, or a stack of N, with an adapter when `lora` is given."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stack: int,
        dtype: DTypeLike,
        quantization: Quantization,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
    ):
        kernel = jax.random.normal(rngs.params(), (stack, inputs, outputs), dtype) * inputs**-0.5
        self.kernel = NF4Kernel(kernel) if quantization == "nf4" else nnx.Param(kernel.astype(dtype))
        self.lora = LoRA(lora, inputs, outputs, stack=stack, rngs=rngs) if lora else None

    def __call__(self, x: jax.Array, dropped: jax.Array | None = None) -> jax.Array:
        """x: [..., I] → [..., O]; the adapter reads `dropped` if given. Called on one layer's slice of the stack."""
        y = self.kernel(x) if isinstance(self.kernel, NF4Kernel) else x @ self.kernel[...].astype(x.dtype)
        return y if self.lora is None else y + self.lora(x if dropped is None else dropped)


def merge_adapter(kernel: jax.Array, a: jax.Array, b: jax.Array, config: LoRAConfig) -> jax.Array:
    """Folds adapters into kernels: [..., I, O] + scale · [..., I, R] @ [..., R, O], summed in float32."""
    merged = kernel.astype(jnp.float32) + config.scale * (a.astype(jnp.float32) @ b.astype(jnp.float32))
    return merged.astype(kernel.dtype)
