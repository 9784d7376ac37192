"""How frozen kernels of the layers are stored: in the model's dtype, or as int8.py or nf4.py do it.

Letters: N layers (stacked), I input width, O output width.
"""

from typing import Literal

import jax
from flax import nnx

from viavsp_jax.models.int8 import Int8Kernel
from viavsp_jax.models.nf4 import NF4Kernel

Quantization = Literal["none", "int8", "nf4"]

KERNELS: dict[Quantization, type[Int8Kernel] | type[NF4Kernel]] = {"int8": Int8Kernel, "nf4": NF4Kernel}


def quantize_stack(kernel: jax.Array, quantization: Quantization) -> dict[str, jax.Array]:
    """Any float [N, I, O] → the arrays that it is stored as, by their names in the module of `KERNELS`."""
    return nnx.to_pure_dict(nnx.state(KERNELS[quantization](kernel)))
