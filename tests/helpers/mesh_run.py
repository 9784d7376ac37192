"""Run by test_meshes.py on 8 CPU devices: losses, gradients and quantised weights on several meshes.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/helpers/mesh_run.py every

takes every shape that 8 devices have, and int8.
"""

import functools
import itertools
import sys

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from configs import base
from viavsp_jax import sharding, state
from viavsp_jax.losses import label_loss
from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.models.dropout import random_words
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.lora import PROJECTIONS, LoRAConfig
from viavsp_jax.models.quantize import quantize_stack
from viavsp_jax.models.viavsp import ModelConfig, ViAVSP
from viavsp_jax.run_settings import read_settings

# With all that families have.
TINY = LlamaConfig(
    96, 128, 192, 2, 4, 2, 16, 1e4, 1e-5, False,
    biased=PROJECTIONS, qk_norm=True, windows=(5, None), post_norms=True, local_rope_theta=21.0,
)  # fmt: skip
B, T, S, P, L, E = 8, 24, 16, 3, 6, 10
ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1}
EVERY = [
    {"data": data, "fsdp": fsdp, "tensor": -1} for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) if data * fsdp <= 8
]
ALL_AXES, FSDP, TENSOR = ({"data": data, "fsdp": fsdp, "tensor": -1} for data, fsdp in ((2, 2), (1, 8), (1, 1)))


def make_mesh(sizes: dict[str, int]) -> Mesh:
    config = base.get_config()
    config.mesh.update(sizes)
    return sharding.make_mesh(read_settings(config).mesh, jax.devices()[:1] if sizes is ONE_DEVICE else None)


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(B, T, E)).astype(np.float32),
        "frame_slot": np.sort(rng.integers(0, S + 1, (B, T))).astype(np.int32),
        "tokens": rng.integers(0, 96, (B, S)).astype(np.int32),
        "is_speech": rng.random((B, S)) < 0.5,
        # An instruction of P positions and two utterances behind it.
        "segment_ids": np.sort(np.append(np.ones((B, P)), rng.integers(2, 4, (B, S - P)), 1)).astype(np.int32),
        "positions": np.tile(np.arange(S, dtype=np.int32), (B, 1)),
        "label_index": rng.integers(0, S, (B, L)).astype(np.int32),
        "targets": rng.integers(0, 96, (B, L)).astype(np.int32),
        "weights": np.full((B, L), 1 / L, np.float32),
    }


@functools.cache
def model(quantization: str):
    attention = PackedAttention(instruction=P)
    config = ModelConfig(TINY, LoRAConfig(targets=PROJECTIONS), E, "float32", quantization, attention)
    return jax.device_get(state.split(ViAVSP(config, nnx.Rngs(params=0))))


def loss_and_gradients(quantization: str, sizes: dict[str, int]):
    """On one mesh, after a look at where weights and rows are."""
    mesh, (structure, trainable, frozen) = make_mesh(sizes), model(quantization)
    trainable = jax.tree.map(lambda x: x + 0.01, trainable)
    trainable, frozen = (jax.device_put(x, sharding.shard_params(mesh, x)) for x in (trainable, frozen))
    batch = sharding.put_batch(mesh, make_batch())
    kernel = frozen["llm"]["layers"]["up"]["kernel"]
    inputs, stored = (64 if quantization == "nf4" else 128), (kernel if quantization == "none" else kernel["codes"])
    pieces = {piece.data.shape for piece in stored.addressable_shards}
    assert pieces == {(2, inputs // mesh.shape["fsdp"], 192 // mesh.shape["tensor"])}, pieces
    rows = batch["tokens"].addressable_shards[0].data.shape[0]
    assert rows == B // mesh.shape["data"] // mesh.shape["fsdp"]

    def loss(trainable, frozen, batch):
        logits = nnx.merge(structure, trainable, frozen)(batch)
        return label_loss(logits, batch["targets"], batch["weights"])[0]

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(trainable, frozen, batch))


def check_quantization(quantization: str, sizes: dict[str, int]) -> None:
    """Kernels that are quantised where they lie get the codes they get on one device."""
    whole, quantized = ({"llm": {"layers": model(name)[2]["llm"]["layers"]}} for name in ("none", quantization))
    mesh = make_mesh(sizes)
    placed = jax.device_put(whole, sharding.shard_params(mesh, whole))
    shardings = sharding.shard_params(mesh, quantized)
    for name in ("q", "down"):
        kernel, target, expected = (tree["llm"]["layers"][name]["kernel"] for tree in (placed, shardings, quantized))
        found = jax.jit(quantize_stack, static_argnums=1, out_shardings=target)(kernel, quantization)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def check_random_words(sizes: dict[str, int]) -> None:
    """Dropout draws the same bits on every mesh."""
    whole = jax.jit(lambda key: random_words(key, (B, 64, 256)))(jax.random.key(3))
    split = sharding.rows(make_mesh(sizes))
    found = jax.jit(lambda key: random_words(key, (B, 64, 256)), out_shardings=split)(jax.random.key(3))
    np.testing.assert_array_equal(found, whole)


def main() -> None:
    assert jax.device_count() == 8
    for sizes in (FSDP, ALL_AXES):
        check_random_words(sizes)
    shapes = {"none": [ALL_AXES, TENSOR], "nf4": [ALL_AXES]}
    if sys.argv[1:] == ["every"]:
        shapes |= {"none": EVERY, "int8": [ALL_AXES]}
    for quantization, meshes in shapes.items():
        expected = loss_and_gradients(quantization, ONE_DEVICE)
        for sizes in meshes:
            found = loss_and_gradients(quantization, sizes)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for quantization, sizes in itertools.product(("int8", "nf4"), (FSDP, ALL_AXES)):
        check_quantization(quantization, sizes)
    print("equal")


if __name__ == "__main__":
    main()
