"""Time of Pallas kernels, counted by hand for small ones."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from viavsp_jax.aot import kernels
from viavsp_jax.aot.topology import CHIPS

CHIP = CHIPS["v5e"]
M, K, N = 16, 128, 256


def seconds(function, *shapes: tuple[int, ...]) -> dict[str, float]:
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return kernels.seconds(jax.make_jaxpr(function)(*inputs).jaxpr, CHIP)


def by_hand(runs: int, products: int, elementwise: int) -> float:
    """Of products' operations at 197 TFLOP/s, and elementwise ones at 4 units of 8 x 128 values and 1.5 GHz."""
    return pytest.approx(runs * (products / 197e12 + elementwise / (4 * 8 * 128 * 1.5e9)))


def call(body, *shapes, grid=(3, 2), name="kernel"):
    """A call of a kernel on blocks [M, N], of inputs as large as they are."""
    blocks = [pl.BlockSpec(shape, lambda *_: (0, 0)) for shape in shapes]
    result = jax.ShapeDtypeStruct((M, N), jnp.float32)
    run = pl.pallas_call(
        body, result, grid=grid, in_specs=blocks, out_specs=pl.BlockSpec((M, N), lambda *_: (0, 0)), name=name
    )
    return lambda *inputs: run(*inputs)


def test_products_and_elementwise_operations():
    def body(x, w, out):
        # A product, a maximum over rows, a subtraction, an exponential, a sum, a division; moving values is free.
        y = jnp.dot(x[...], w[...], preferred_element_type=jnp.float32)
        y = jnp.exp(y - y.max(1, keepdims=True))
        out[...] = y / y.sum(1, keepdims=True)

    found = seconds(call(body, (M, K), (K, N)), (M, K), (K, N))
    assert found == {"kernel": by_hand(6, 2 * M * K * N, M * N * (1 + 1 + 4 + 1 + 4))}


def test_the_branch_that_a_step_takes_and_loops():
    def body(x, out):
        @pl.when(pl.program_id(0) == pl.num_programs(0) - 1)
        def _():
            out[...] = x[...] + x[...]

        out[...] = jax.lax.cond(
            pl.program_id(1) > 0, lambda x: x + 1, lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x * x, x), x[...]
        )

    (found,) = seconds(call(body, (M, N), grid=(4, 3)), (M, N)).values()
    # Of 12 steps, 3 have the addition, 8 that of the first branch, and 4 the loop.
    whole = by_hand(1, 0, (3 + 8 + 4 * 5) * M * N).expected
    assert whole <= found < whole * 1.01  # beside it, the counters of the loop


def test_the_dearest_branch_where_data_decides():
    def body(x, out):
        out[...] = jax.lax.cond(x[0, 0] > 0, lambda x: x + 1, lambda x: x * x * x * x, x[...])

    (found,) = seconds(call(body, (M, N), grid=(4, 3)), (M, N)).values()
    whole = by_hand(12, 0, 3 * M * N).expected
    assert whole <= found < whole * 1.01


def test_kernels_within_loops_and_of_one_name():
    """Seconds are those of one call; of two kernels with one name, of the longer."""

    def square(x, out):
        out[...] = x[...] * x[...]

    def tanh(x, out):
        out[...] = jnp.tanh(x[...])

    def f(x):
        x = jax.lax.scan(lambda x, _: (call(square, (M, N))(x), None), x, length=9)[0]
        x = call(tanh, (M, N), grid=(1,))(x)
        return jax.jit(call(tanh, (M, N), grid=(7,), name="other"))(x)

    assert seconds(f, (M, N)) == {"kernel": by_hand(6, 0, M * N), "other": by_hand(7, 0, 4 * M * N)}
    assert seconds(jnp.sin, (M, N)) == {}
