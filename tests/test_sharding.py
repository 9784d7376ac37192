"""Rules and meshes on 8 CPU devices, in a process of its own, since the number of devices is fixed at start."""

import os
import subprocess
import sys
import textwrap

import pytest

from configs import base
from viavsp_jax import sharding, state
from viavsp_jax.errors import InputError
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.lora import LoRAConfig

TINY = LlamaConfig(96, 128, 192, 2, 4, 2, 16, 1e4, 1e-5, False)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_weight_has_a_rule(quantization):
    mesh = sharding.make_mesh(base.get_config())
    _, trainable, frozen = state.abstract_model(TINY, LoRAConfig(), 10, "float32", quantization)
    for tree in (trainable, frozen):
        sharding.shard_params(mesh, tree)
    with pytest.raises(KeyError, match="no sharding rule for llm/layers/router/kernel"):
        sharding.shard_params(mesh, {"llm": {"layers": {"router": {"kernel": 0}}}})


def test_a_mesh_that_does_not_fit():
    config = base.get_config()
    config.mesh.fsdp = 3
    with pytest.raises(InputError, match="does not fit 1 devices"):
        sharding.make_mesh(config)


def test_losses_gradients_and_quantization_do_not_depend_on_the_mesh():
    script = """
        import jax, jax.numpy as jnp, numpy as np
        from flax import nnx
        from configs import base
        from test_sharding import TINY
        from viavsp_jax import sharding, state
        from viavsp_jax.models.lora import LoRAConfig
        from viavsp_jax.models.quantize import quantize_stack
        from viavsp_jax.metrics import label_loss

        rng = np.random.default_rng(0)
        B, T, S, L, E = 8, 24, 16, 6, 10
        batch = {
            "features": rng.normal(size=(B, T, E)).astype(np.float32),
            "frame_slot": np.sort(rng.integers(0, S + 1, (B, T))).astype(np.int32),
            "tokens": rng.integers(0, 96, (B, S)).astype(np.int32),
            "is_speech": rng.random((B, S)) < 0.5,
            "segment_ids": np.sort(rng.integers(1, 3, (B, S))).astype(np.int32),
            "positions": np.tile(np.arange(S, dtype=np.int32), (B, 1)),
            "label_index": rng.integers(0, S, (B, L)).astype(np.int32),
            "targets": rng.integers(0, 96, (B, L)).astype(np.int32),
            "weights": np.full((B, L), 1 / L, np.float32),
        }

        def model(quantization):
            made = state.split(state.make_model(jax.random.key(0), TINY, LoRAConfig(), E, "float32", quantization))
            return jax.device_get(made)

        models = {quantization: model(quantization) for quantization in ("none", "nf4")}

        def run(quantization, **sizes):
            config = base.get_config()
            config.mesh.update(sizes)
            mesh = sharding.make_mesh(config)
            structure, trainable, frozen = models[quantization]
            trainable = jax.tree.map(lambda x: x + 0.01, trainable)
            trainable, frozen = (jax.device_put(x, sharding.shard_params(mesh, x)) for x in (trainable, frozen))
            placed = sharding.put_batch(mesh, batch)
            stored = frozen["llm"]["layers"]["up"]["kernel"]
            inputs, stored = (128, stored) if quantization == "none" else (64, stored["codes"])
            pieces = {s.data.shape for s in stored.addressable_shards}
            assert pieces == {(2, inputs // mesh.shape["fsdp"], 192 // mesh.shape["tensor"])}, pieces
            assert placed["tokens"].addressable_shards[0].data.shape[0] == B // mesh.shape["data"] // mesh.shape["fsdp"]

            def loss(trainable, frozen, batch):
                logits = nnx.merge(structure, trainable, frozen)(batch)
                return label_loss(logits, batch["targets"], batch["weights"])[0]

            return jax.device_get(jax.jit(jax.value_and_grad(loss))(trainable, frozen, placed))

        assert jax.device_count() == 8
        meshes = [dict(data=1, fsdp=8, tensor=1), dict(data=1, fsdp=1, tensor=-1), dict(data=2, fsdp=2, tensor=2)]
        for quantization in models:
            expected = run(quantization, data=8, fsdp=1, tensor=1)
            for sizes in meshes if quantization == "none" else meshes[-1:]:
                found = run(quantization, **sizes)
                for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

        whole, quantized = ({"llm": {"layers": models[name][2]["llm"]["layers"]}} for name in ("none", "nf4"))
        for sizes in (meshes[0], meshes[-1]):
            config = base.get_config()
            config.mesh.update(sizes)
            mesh = sharding.make_mesh(config)
            placed = jax.device_put(whole, sharding.shard_params(mesh, whole))
            shardings = sharding.shard_params(mesh, quantized)
            for name in ("q", "down"):
                kernel, target, expected = (
                    tree["llm"]["layers"][name]["kernel"] for tree in (placed, shardings, quantized)
                )
                found = jax.jit(quantize_stack, out_shardings=target)(kernel)
                jax.tree.map(np.testing.assert_array_equal, found, expected)
        print("equal")
    """
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": "tests:.",
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0 and result.stdout == "equal\n", result.stderr
