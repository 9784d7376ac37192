"""Time of Pallas kernels, which the compiler does not estimate: by counting what their bodies do."""

import math
from collections.abc import Iterator

from jax.extend import core

from viavsp_jax.aot import flops
from viavsp_jax.aot.topology import Chip

# Of an elementwise operation on one value; others count 1. A chip has one unit for these beside four plain ones.
_COST = {"exp": 4, "exp2": 4, "log": 4, "tanh": 4, "logistic": 4, "rsqrt": 4, "sin": 4, "cos": 4, "div": 4}
# What moves values or names them, without arithmetic.
_FREE = {"get", "swap", "reshape", "squeeze", "broadcast_in_dim", "transpose", "iota", "concatenate", "slice",
         "bitcast_convert_type", "program_id", "num_programs", "dot_general", "masked_load", "masked_swap"}  # fmt: skip


def seconds(jaxpr: core.Jaxpr, chip: Chip) -> dict[str, float]:
    """Of one call of each kernel of a program on one device, by the kernel's name.

    Products at the chip's peak, plus elementwise operations at the rate of its vector units: the sum, since one waits
    for the other in most of a kernel. Time of reading and writing is not in it.
    """
    found: dict[str, float] = {}
    for equation in _calls(jaxpr):
        body, runs = equation.params["jaxpr"], math.prod(equation.params["grid_mapping"].grid)
        once = flops.of_program(body) / chip.peak_flops + vector_operations(body) / chip.vector_rate
        name = equation.params["name"]
        found[name] = max(found.get(name, 0.0), runs * once)
    return found


def vector_operations(jaxpr: core.Jaxpr) -> int:
    """Elementwise operations and reductions of one run of a kernel's body; of several branches the dearest."""
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(flops.jaxprs(equation.params))
        if name == "cond":
            total += max(map(vector_operations, inner))
        elif inner:
            total += sum(map(vector_operations, inner)) * flops.repetitions(name, equation.params, 1)
        elif name not in _FREE:
            values = equation.invars if name.startswith(("reduce", "argm", "cum")) else equation.outvars
            total += _COST.get(name, 1) * max((math.prod(one.aval.shape) for one in values), default=0)
    return total


def _calls(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in flops.jaxprs(equation.params):
                yield from _calls(inner)
