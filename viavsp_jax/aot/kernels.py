"""Time of Pallas kernels, which the compiler does not estimate: by counting what their bodies do."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

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
        body, grid, name = equation.params["jaxpr"], equation.params["grid_mapping"].grid, equation.params["name"]
        products = math.prod(grid) * flops.of_program(body) / chip.peak_flops
        elementwise = sum(vector_operations(body, grid, step) for step in itertools.product(*map(range, grid)))
        found[name] = max(found.get(name, 0.0), products + elementwise / chip.vector_rate)
    return found


def vector_operations(body: core.Jaxpr, grid: Sequence[int], step: Sequence[int]) -> int:
    """Elementwise operations and reductions of a kernel's body at one step of its grid.

    Of branches the one that is taken, where the step decides about that, else the dearest.
    """

    def count(jaxpr: core.Jaxpr, given: Sequence[Any]) -> int:
        known = {var: value for var, value in zip(jaxpr.invars, given, strict=True) if value is not None}
        total = 0
        for equation in jaxpr.eqns:
            name, inner = equation.primitive.name, list(flops.jaxprs(equation.params))
            values = [x.val if isinstance(x, core.Literal) else known.get(x) for x in equation.invars]
            if name == "program_id":
                known[equation.outvars[0]] = step[equation.params["axis"]]
            elif name == "num_programs":
                known[equation.outvars[0]] = grid[equation.params["axis"]]
            elif name == "cond":
                taken = inner if values[0] is None else [inner[int(values[0])]]
                total += max(count(branch, values[1:]) for branch in taken)
            elif inner:
                each = sum(count(one, [None] * len(one.invars)) for one in inner)
                total += each * flops.repetitions(name, equation.params, 1)
            elif equation.outvars and all(value is not None for value in values) and not equation.outvars[0].aval.shape:
                known[equation.outvars[0]] = equation.primitive.bind(*values, **equation.params)
            elif name not in _FREE:
                arrays = equation.invars if name.startswith(("reduce", "argm", "cum")) else equation.outvars
                total += _COST.get(name, 1) * max((math.prod(one.aval.shape) for one in arrays), default=0)
        return total

    return count(body, [None] * len(body.invars))


def _calls(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in flops.jaxprs(equation.params):
                yield from _calls(inner)
