"""The one place where programs are made."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import viavsp_jax
from viavsp_jax.aot import topology
from viavsp_jax.integrity import weighted_sum
from viavsp_jax.models.nf4 import round_trip
from viavsp_jax.runtime import programs

PACKAGE = pathlib.Path(viavsp_jax.__file__).parent


def test_no_other_place_makes_programs_that_multiply():
    made = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.jit" for node in ast.walk(tree)):
            made.add(path.relative_to(PACKAGE).as_posix())
    assert made == {"runtime/programs.py", "integrity.py", "models/nf4.py"}
    kernel = jnp.zeros((1, 64, 2))
    others = jax.make_jaxpr(round_trip)(kernel), jax.make_jaxpr(weighted_sum)(kernel, np.uint32(0))
    assert not any("dot_general" in str(one) for one in others)


def test_programs_get_the_options_of_their_devices(monkeypatch):
    on_cpu = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    on_tpu = jax.make_mesh((1,), ("data",), devices=topology.load_topology("v5e:1x1").devices)
    assert programs.compiler_options(on_cpu) == {"xla_cpu_experimental_ynn_fusion_type": ""}
    assert programs.compiler_options(on_tpu) == {}
    assert programs.jit(on_cpu, jnp.add, donate_argnums=0)(jnp.float32(1), 2) == 3
    monkeypatch.setattr(programs, "compiler_options", lambda mesh: {"no_such_option": mesh.size})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        programs.jit(on_cpu, jnp.add)(1, 2)
