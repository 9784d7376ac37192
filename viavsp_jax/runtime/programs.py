"""Where every program of the package is made, so that all of them are compiled by the same options."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """What XLA is told for programs on the devices of a mesh."""
    # XLA's YNN kernels for CPUs batch attention's products badly: an update takes a tenth longer with them. Where they
    # are on, XLA also leaves products of bfloat16 to them that they then do not take, and the program fails.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if on_cpu else {}


def jit(mesh: Mesh, function: Callable[..., Any], **settings: Any) -> jax.stages.Wrapped:
    """jax.jit, with its settings, for the devices of a mesh."""
    return jax.jit(function, compiler_options=compiler_options(mesh), **settings)
