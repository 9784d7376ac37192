"""INT8 kernels against numpy, and models with them against models with the kernels that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from mesh_run import TINY, E, make_batch

from viavsp_jax.losses import label_loss
from viavsp_jax.models.int8 import Int8Kernel, quantize, quantize_stack
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.lora import PROJECTIONS, LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig, ViAVSP
from viavsp_jax.state import abstract_model, split


def kernels(dtype):
    """[96, 40]: widths of each output from 1e-4 to 1e4, with an output of zeros, one of one weight, and one tiny."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_t(3, size=(96, 40)) * 10.0 ** rng.uniform(-4, 4, 40)
    kernel[:, 7] = 0
    kernel[1:, 8] = 0
    kernel[:, 9] = 1e-7
    return jnp.asarray(np.clip(kernel, -6e4, 6e4), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_codes_and_scales(dtype):
    kernel = kernels(dtype)
    stored = jax.jit(quantize)(kernel)
    exact = np.asarray(kernel, np.float64)
    scales = np.abs(exact).max(0, keepdims=True) / 127
    assert stored["codes"].dtype == jnp.int8 and stored["scales"].dtype == jnp.float32
    np.testing.assert_allclose(stored["scales"], scales, rtol=3e-7)
    codes = np.asarray(stored["codes"], np.float64)
    # Nearest codes, whatever way a tie goes: no code is off by more than half a step of its output.
    assert (np.abs(codes * scales - exact) <= scales * (0.5 + 1e-4)).all()
    largest = np.abs(codes).max(0)
    assert largest[7] == 0 and stored["scales"][0, 7] == 0 and (np.delete(largest, 7) == 127).all()


def test_halves_go_to_the_even_neighbour():
    kernel = jnp.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5]]).T
    stored = quantize(kernel)
    assert stored["scales"].item() == 1
    assert stored["codes"][:, 0].tolist() == [127, 0, 2, 2, 0, -2, -2, 64]


def test_stacks_are_quantised_layer_by_layer():
    stack = jax.random.normal(jax.random.key(0), (3, 64, 24), jnp.bfloat16) * jnp.arange(1.0, 4)[:, None, None]
    stored, singles = jax.jit(quantize_stack)(stack), [jax.jit(quantize)(one) for one in stack]
    assert stored["codes"].shape == (3, 64, 24) and stored["scales"].shape == (3, 1, 24)
    for name, value in stored.items():
        np.testing.assert_array_equal(value, np.stack([one[name] for one in singles]))


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_product_and_gradient(dtype, rounding):
    """The product is rounded to its dtype once, the gradient twice: before its own product and after."""
    kernel = kernels("float32")
    graph, stacked = nnx.split(Int8Kernel(kernel[None]))
    one = jax.tree.map(lambda x: x[0], stacked)
    weights = np.asarray(one["codes"][...], np.float64) * np.asarray(one["scales"][...], np.float64)
    x, y = (jax.random.normal(jax.random.key(i), (2, 5, width), dtype) for i, width in enumerate((96, 40)))
    found, back = jax.vjp(lambda x: nnx.merge(graph, one)(x), x)
    (gradient,) = back(y)
    assert found.dtype == gradient.dtype == x.dtype
    for result, left, right, roundings in ((found, x, weights, 1), (gradient, y, weights.T, 2)):
        exact, summed = (f(np.asarray(left, np.float64)) @ f(right) for f in (np.asarray, np.abs))
        assert (np.abs(np.asarray(result, np.float64) - exact) <= 1.01 * roundings * rounding * summed).all()
    assert (np.asarray(found)[..., 7] == 0).all()


def test_losses_and_gradients_equal_those_beside_the_dequantised_kernels():
    lora = LoRAConfig(targets=PROJECTIONS)
    structure, trainable, frozen = split(ViAVSP(ModelConfig(TINY, lora, E, "float32", "int8"), nnx.Rngs(params=0)))
    trainable = jax.tree.map(lambda x: x + 0.01, trainable)
    flat = flatten_dict(frozen)
    for path in [path for path in flat if path[-1] == "codes"]:
        flat[path[:-1]] = flat.pop(path) * flat.pop((*path[:-1], "scales"))
    plain = abstract_model(ModelConfig(TINY, lora, E, "float32"))[0]

    @jax.jit(static_argnums=0)
    def run(structure, frozen):
        def loss(trainable):
            batch = make_batch()
            logits = nnx.merge(structure, trainable, frozen)(batch)
            return label_loss(logits, batch["targets"], batch["weights"])[0]

        return jax.value_and_grad(loss)(trainable)

    (found, gradients), (loss, expected) = run(structure, frozen), run(plain, unflatten_dict(flat))
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("remat", ["none", "elementwise", "layers"])
def test_weights_in_full_exist_one_layer_at_a_time(remat):
    llama = LlamaConfig(96, 256, 1024, 24, 4, 2, 16, 1e4, 1e-5, False)
    structure, trainable, frozen = abstract_model(ModelConfig(llama, LoRAConfig(), E, "float32", "int8"))
    codes = sum(x.size for path, x in flatten_dict(frozen).items() if path[-1] == "codes")

    def loss(trainable, frozen, x):
        llm = nnx.merge(structure, trainable, frozen).llm
        ids = jnp.ones(x.shape[:2], int)
        return jnp.sum(llm(x, ids, ids, None, remat))

    x = jax.ShapeDtypeStruct((1, 2, 256), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(trainable, frozen, x).compile()
    in_full = 4 * codes // llama.num_layers
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * in_full
