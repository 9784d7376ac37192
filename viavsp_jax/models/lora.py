"""Low-rank adapters (LoRA, arXiv:2106.09685) beside frozen projections.

Letters: N layers (stacked), I input width, O output width, R rank.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from viavsp_jax.models.quantize import KERNELS, Quantization

# The projections of a layer, which may have adapters.
Projection = Literal["q", "k", "v", "o", "gate", "up", "down"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Adapter shape, in peft's terms: the update is scale · B A x."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[Projection, ...] = ("q", "k", "v")
    rslora: bool = False  # rank-stabilised (arXiv:2312.03732)

    @property
    def scale(self) -> float:
        """Factor on the adapter's output: alpha / rank, with `rslora` alpha / √rank."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


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
        low = checkpoint_name(rows @ self.a[...].astype(x.dtype) * self.config.scale, "low")
        return (low @ self.b[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)


class Linear(nnx.Module):
    """A frozen projection, or a stack of N, with an adapter when `lora` is given."""

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
        bias: bool = False,
    ):
        kernel = jax.random.normal(rngs.params(), (stack, inputs, outputs), dtype) * inputs**-0.5
        quantized = KERNELS.get(quantization)
        self.kernel = quantized(kernel) if quantized else nnx.Param(kernel.astype(dtype))
        self.bias = nnx.Param(jnp.zeros((stack, outputs), dtype)) if bias else None
        self.lora = LoRA(lora, inputs, outputs, stack=stack, rngs=rngs) if lora else None

    def __call__(self, x: jax.Array, dropped: jax.Array | None = None) -> jax.Array:
        """x: [..., I] → [..., O]; the adapter reads `dropped` if given. Called on one layer's slice of the stack."""
        y = x @ self.kernel[...].astype(x.dtype) if isinstance(self.kernel, nnx.Param) else self.kernel(x)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return y if self.lora is None else y + self.lora(x if dropped is None else dropped)


def merge_adapter(kernel: jax.Array, a: jax.Array, b: jax.Array, config: LoRAConfig) -> jax.Array:
    """Folds adapters into kernels: [..., I, O] + scale · [..., I, R] @ [..., R, O], summed in float32."""
    merged = kernel.astype(jnp.float32) + config.scale * (a.astype(jnp.float32) @ b.astype(jnp.float32))
    return merged.astype(kernel.dtype)
