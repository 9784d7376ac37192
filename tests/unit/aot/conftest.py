"""A TPU slice that is not there, and texts of programs compiled for one of its chips."""

import os
from collections.abc import Callable, Iterator

import jax
import pytest

from viavsp_jax.aot.topology import Topology, load_topology


@pytest.fixture(scope="module")
def slice_of_four() -> Iterator[Topology]:
    """v5e:2x2; the variables that libtpu reads are not to reach other tests."""
    before = dict(os.environ)
    yield load_topology("v5e:2x2")
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def compiled_text(slice_of_four) -> Callable[..., str]:
    """What the TPU's compiler makes of a function of arrays of the given shapes and dtypes, on one chip."""
    chip = jax.sharding.SingleDeviceSharding(slice_of_four.devices[0])

    def compiled(function: Callable, *arguments: tuple[tuple[int, ...], str]) -> str:
        shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=chip) for shape, dtype in arguments]
        return jax.jit(function, out_shardings=chip).lower(*shapes).compile().as_text()

    return compiled
