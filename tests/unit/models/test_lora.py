"""Adapters against peft, on the same transformers model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import nnx, traverse_util
from llama_pairs import VOCAB, WHOLE, draw, make_pair

from convert.names import tensors
from viavsp_jax.models.dropout import three_dropouts
from viavsp_jax.models.lora import LoRA, LoRAConfig, merge_adapter

CONFIG = LoRAConfig(rank=2, alpha=6.0, dropout=0.05)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Our model's structure and weights, and peft's model with the same ones."""

    graph: nnx.GraphDef
    params: dict
    base: np.ndarray  # logits of the base model
    theirs: peft.PeftModel
    tokens: np.ndarray

    def logits(self, params, key=None):
        model = nnx.merge(self.graph, params)
        positions = np.tile(np.arange(self.tokens.shape[1]), (len(self.tokens), 1))
        x = model(model.embed(self.tokens), jnp.ones(self.tokens.shape, int), positions, key, "none")
        return model.logits(x)


def is_adapter(path) -> bool:
    return "lora" in path


def with_adapters(params, change):
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({k: change(k, v) if is_adapter(k) else v for k, v in flat.items()})


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Adapted:
    pair = make_pair(tmp_path_factory.mktemp("lora"))
    for projection in (pair.ours.layers.q, pair.ours.layers.k, pair.ours.layers.v):
        projection.lora.config = CONFIG
    tokens = draw((2, 8))
    with torch.no_grad():
        base = pair.theirs(torch.tensor(tokens)).logits.numpy()
    config = peft.LoraConfig(
        r=CONFIG.rank,
        lora_alpha=CONFIG.alpha,
        lora_dropout=CONFIG.dropout,
        target_modules=["q_proj", "k_proj", "v_proj"],
    )
    theirs = peft.get_peft_model(pair.theirs, config).eval()
    graph, params = nnx.split(pair.ours)
    weights, rng = dict(theirs.named_parameters()), np.random.default_rng(0)
    flat = {k: np.array(v) for k, v in traverse_util.flatten_dict(nnx.to_pure_dict(params)).items()}
    for path in filter(is_adapter, flat):
        flat[path] = rng.normal(size=flat[path].shape, scale=0.3).astype(np.float32)
    params = traverse_util.unflatten_dict(flat)
    for tensor in tensors({"llm": with_only_adapters(params)}):
        value = traverse_util.flatten_dict({"llm": params}, sep="/")[tensor.path][tensor.index]
        weights[tensor.name.replace(".weight", ".default.weight")].data = torch.tensor(tensor.to_theirs(value).copy())
    return Adapted(graph, params, base, theirs, tokens)


def with_only_adapters(params):
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({k: v for k, v in flat.items() if is_adapter(k)})


def test_logits_and_gradients_equal_peft(adapted):
    target = np.random.default_rng(1).normal(size=(*adapted.tokens.shape, VOCAB)).astype(np.float32)
    logits, gradients = jax.jit(
        lambda params: (
            adapted.logits(params),
            jax.grad(lambda p: jnp.mean((adapted.logits(p) - target) ** 2))(params),
        )
    )(adapted.params)
    theirs = adapted.theirs(torch.tensor(adapted.tokens)).logits
    np.testing.assert_allclose(logits, theirs.detach(), atol=WHOLE, rtol=WHOLE)
    assert np.abs(logits - adapted.base).max() > 0.1, "the adapter must change the output"

    ((theirs - torch.tensor(target)) ** 2).mean().backward()
    weights = dict(adapted.theirs.named_parameters())
    ours = traverse_util.flatten_dict({"llm": gradients}, sep="/")
    compared = tensors({"llm": with_only_adapters(gradients)})
    assert len(compared) == 3 * 3 * 2  # layers, projections, a and b
    for tensor in compared:
        expected = weights[tensor.name.replace(".weight", ".default.weight")].grad.numpy()
        error = np.abs(tensor.to_theirs(ours[tensor.path][tensor.index]) - expected).max() / np.abs(expected).max()
        assert error < 1e-4, (tensor.name, error)


def test_new_adapter_changes_nothing(adapted):
    params = with_adapters(adapted.params, lambda path, v: np.zeros_like(v) if path[-1] == "b" else v)
    np.testing.assert_allclose(jax.jit(adapted.logits)(params), adapted.base, atol=WHOLE, rtol=WHOLE)
    fresh = LoRA(CONFIG, 8, 5, stack=2, rngs=nnx.Rngs(0))
    assert not fresh.b[...].any() and fresh.a[...].std() > 0.1
    assert np.abs(fresh.a[...]).max() <= 8**-0.5


def test_merged_kernels_equal_the_adapter(adapted):
    flat = traverse_util.flatten_dict(adapted.params)
    for path in [path for path in flat if path[-1] == "a"]:
        kernel, b = (*path[:-2], "kernel"), (*path[:-1], "b")
        flat[kernel] = merge_adapter(jnp.array(flat[kernel]), flat[path], flat[b], CONFIG)
        flat[b] = np.zeros_like(flat[b])
    logits = jax.jit(adapted.logits)
    merged, unmerged = logits(traverse_util.unflatten_dict(flat)), logits(adapted.params)
    np.testing.assert_allclose(merged, unmerged, atol=WHOLE, rtol=WHOLE)
    assert np.abs(merged - adapted.base).max() > 0.1


def test_merge_sums_in_float32():
    kernel = jnp.ones((1, 4, 3), jnp.bfloat16)
    a, b = jnp.full((1, 4, 2), 1e-3), jnp.full((1, 2, 3), 1.0)
    merged = merge_adapter(kernel, a, b, LoRAConfig(2, 8.0))
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged, np.full((1, 4, 3), 1 + 4 * 2e-3, np.float32).astype(jnp.bfloat16))


def test_dropout_only_with_a_key(adapted):
    logits = jax.jit(adapted.logits)
    plain = logits(adapted.params)
    first, again, other = (logits(adapted.params, jax.random.key(seed, impl="rbg")) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain).max() > 1e-3 and np.abs(first - other).max() > 1e-3


def test_three_dropouts_keep_the_expectation_and_are_independent():
    x, draws = jax.random.normal(jax.random.key(3), (6,)), 20_000
    dropped = jax.jit(lambda x: jnp.stack(three_dropouts(x, 0.3, jax.random.key(4))))(jnp.tile(x, (draws, 1)))
    error = dropped.std(1) / draws**0.5
    np.testing.assert_array_less(np.abs(dropped.mean(1) - x[None]), 5 * error)

    share = round(0.3 * 1024) / 1024
    gone = np.asarray(dropped == 0, np.float64).reshape(3, -1)
    expected = np.full((3, 3), share**2) + np.diag([share - share**2] * 3)  # of all pairs, gone together
    np.testing.assert_allclose(gone @ gone.T / gone.shape[1], expected, atol=5 * (share / gone.shape[1]) ** 0.5)


def test_three_dropouts_at_rate_zero_are_the_input():
    x = jnp.ones((2, 3))
    assert all(dropped is x for dropped in three_dropouts(x, 0.0, jax.random.key(0)))
