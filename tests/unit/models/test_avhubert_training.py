"""The Flax encoder in training: what it draws, what its backward pass keeps, settings it refuses."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_encoders import PRE_LN

from viavsp_jax.models.avhubert import video
from viavsp_jax.models.avhubert.config import EncoderTraining
from viavsp_jax.models.avhubert.encoder import AVHubert, Block
from viavsp_jax.models.avhubert.positional import convolve
from viavsp_jax.models.dropout import dropout


def test_layer_drop_skips_each_block_at_its_rate():
    rate, draws, frames = 0.3, 400, 3
    training, rng = EncoderTraining(layer_drop=rate), np.random.default_rng(0)
    model = nnx.eval_shape(lambda: AVHubert(PRE_LN, training, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), nnx.to_pure_dict(params))
    x = rng.normal(size=(2, frames, PRE_LN.embed_dim)).astype(np.float32)

    @jax.jit
    def run(params, key=None):
        return nnx.merge(graph, params, stats).transform(x, None, key=key)[1]

    def without(skipped):
        """The output when the blocks of a 0 in `skipped` add nothing to their input."""
        keep = np.array(skipped, np.float32)
        ends = {name: params["blocks"][name] for name in ("o", "down")}
        ends = jax.tree.map(lambda weight: weight * keep.reshape(-1, *[1] * (weight.ndim - 1)), ends)
        return run(params | {"blocks": params["blocks"] | ends})

    choices = np.array(list(itertools.product((0, 1), repeat=PRE_LN.num_layers)))
    expected = np.array([without(choice) for choice in choices])
    keys = jax.random.split(jax.random.key(0), draws)
    found = jax.jit(lambda keys: jax.lax.map(lambda key: run(params, key), keys))(keys)
    distances = np.abs(np.asarray(found)[:, None] - expected[None]).max((2, 3, 4))
    np.testing.assert_allclose(distances.min(1), 0, atol=1e-5)
    assert np.sort(distances, 1)[:, 1].min() > 0.01  # no doubt which
    ran = choices[distances.argmin(1)]
    # Four standard deviations, of each block and of each pair of blocks.
    assert np.abs(ran.mean(0) - (1 - rate)).max() < 4 * (rate * (1 - rate) / draws) ** 0.5
    pairs = np.corrcoef(ran.T)[np.triu_indices(PRE_LN.num_layers, 1)]
    assert np.abs(pairs).max() < 4 / draws**0.5

    gradients = jax.jit(jax.grad(lambda params, key: (run(params, key) ** 3).sum()))(params, keys[0])
    assert not ran[0].all() and ran[0].any()
    for weight in jax.tree.leaves(gradients["blocks"]["up"]):
        np.testing.assert_array_equal(weight.any(range(1, weight.ndim)), ran[0])


@pytest.mark.parametrize(("frames", "taps"), [(76, 128), (9, 16), (10, 7), (3, 128), (1, 5), (4, 1)])
def test_positional_convolution_and_its_gradients(frames, taps):
    """Against XLA's own, of kernels and clips that fill no block."""
    rng = np.random.default_rng(0)
    x, kernel, direction = (rng.normal(size=size).astype(np.float32) for size in ((2, frames, 8), (taps, 8, 6), (6,)))
    kernel /= (8 * taps) ** 0.5

    def by_xla(x, kernel):
        around = [(taps // 2, (taps - 1) // 2)]
        return jax.lax.conv_general_dilated(x, kernel, (1,), around, dimension_numbers=("NWC", "WIO", "NWC"))

    def both(function):
        loss = jax.value_and_grad(lambda *inputs: (jnp.sin(function(*inputs) @ direction)).sum(), argnums=(0, 1))
        return function(x, kernel), *loss(x, kernel)[1]

    for ours, theirs in zip(both(convolve), both(by_xla), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert convolve(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)).dtype == np.float32


@pytest.mark.parametrize("clips", [1, 2, 3, 4, 5, 8, 26])
@pytest.mark.parametrize(("frames", "few"), [(76, 3), (375, 1), (25, 9)])
def test_a_few_clips_at_a_time(clips, frames, few):
    """Of each of 2 rows, fewer if they are longer; statistics are averaged in the order of the clips all the same."""
    x = np.random.default_rng(0).normal(size=(2, clips, frames)).astype(np.float32)
    steps = video.together(jnp.asarray(x))
    assert len(steps) == -(-clips // few) and steps.shape[1] <= 2 * few
    assert 0 <= len(steps) * steps.shape[1] / 2 - clips < len(steps)
    np.testing.assert_array_equal(video.apart(steps, 2, clips), x)

    counted = np.random.default_rng(1).random((2, clips)) < 0.7
    expected = np.ones(frames, np.float32)
    for clip in x[counted]:
        expected = 0.9 * expected + 0.1 * clip
    running = {"mean": jnp.ones(frames), "num_batches": jnp.int32(5)}
    found = video.averaged(running, {"mean": steps, "num_batches": jnp.zeros(len(steps), jnp.int32)}, counted)
    np.testing.assert_allclose(found["mean"], expected, rtol=1e-5, atol=1e-6)
    assert found["num_batches"] == 5 + counted.sum()


@pytest.mark.parametrize("width", [64, 61])
def test_dropout_keeps_the_expectation(width):
    x = jax.random.normal(jax.random.key(1), (8, 200, width))
    dropped = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    rate, gone = 26 / 256, dropped == 0
    np.testing.assert_allclose(dropped[~gone], x[~gone] / (1 - rate), rtol=1e-6)
    # Four standard deviations: of all, of each column, and of two columns at once.
    spread = (rate * (1 - rate) / x.size) ** 0.5
    assert abs(gone.mean() - rate) < 4 * spread
    columns = gone.reshape(-1, width)
    assert np.abs(columns.mean(0) - rate).max() < 4 * spread * width**0.5
    pairs = np.corrcoef(columns.T)[np.triu_indices(width, 1)]
    assert np.abs(pairs).max() < 5 / len(columns) ** 0.5
    assert dropout(x, 0.001, jax.random.key(0)) is x
    assert dropout(x.astype(jnp.bfloat16), 0.1, jax.random.key(0)).dtype == jnp.bfloat16


def test_activation_dropout_is_after_the_activation():
    config = dataclasses.replace(PRE_LN, ffn_dim=PRE_LN.embed_dim)
    block = Block(config, 0.5, jnp.float32, nnx.Rngs(0))
    block.down.kernel[...] = jnp.eye(config.ffn_dim)
    x = np.random.default_rng(0).normal(size=(2, 5, config.embed_dim)).astype(np.float32)
    activated, dropped = block.feed_forward(x, None), block.feed_forward(x, jax.random.key(0))
    assert 0.4 < (dropped == 0).mean() < 0.6
    np.testing.assert_allclose(dropped, np.where(dropped == 0, 0, 2 * activated), rtol=1e-6)


def test_the_backward_pass_keeps_nothing_of_a_block_but_its_input():
    clips, frames = 8, 64

    def temporary(num_layers):
        config = dataclasses.replace(PRE_LN, num_layers=num_layers)
        graph, params = nnx.split(nnx.eval_shape(lambda: AVHubert(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))

        def loss(params, x):
            return nnx.merge(graph, params).transform(x, None)[1].sum()

        x = jax.ShapeDtypeStruct((clips, frames, config.embed_dim), jnp.float32)
        gradient = jax.jit(jax.grad(loss, allow_int=True))
        return gradient.lower(nnx.to_pure_dict(params), x).compile().memory_analysis().temp_size_in_bytes

    attention = clips * PRE_LN.num_heads * frames * frames * 4
    assert temporary(12) - temporary(2) < 10 * attention


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_drop": 1.0}, "layer_drop must be in"),
        ({"activation_dropout": -0.1}, "activation_dropout must be in"),
        ({"batch_norm": "own"}, "batch_norm must be in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EncoderTraining(**settings)
