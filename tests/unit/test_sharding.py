"""Rules of sharding, and meshes that do not fit."""

import pytest
from mesh_run import TINY

from configs import base
from viavsp_jax import sharding, state
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_every_weight_has_a_rule(quantization):
    mesh = sharding.make_mesh(read_settings(base.get_config()).mesh)
    _, trainable, frozen = state.abstract_model(ModelConfig(TINY, LoRAConfig(), 10, "float32", quantization))
    for tree in (trainable, frozen):
        sharding.shard_params(mesh, tree)
    with pytest.raises(KeyError, match="no sharding rule for llm/layers/router/kernel"):
        sharding.shard_params(mesh, {"llm": {"layers": {"router": {"kernel": 0}}}})


def test_a_mesh_that_does_not_fit():
    config = base.get_config()
    config.mesh.fsdp = 3
    with pytest.raises(InputError, match="does not fit 1 devices"):
        sharding.make_mesh(read_settings(config).mesh)
