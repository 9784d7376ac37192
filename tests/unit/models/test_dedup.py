"""Segment means against a loop in numpy."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from viavsp_jax.models.dedup import segment_mean

# Fixed shapes, so that one program is compiled for all examples.
T, S, E = 24, 16, 3
mean = jax.jit(segment_mean, static_argnums=2)


def loop(features, slots):
    """[T, E], int[T] → [S, E] in float64."""
    out = np.zeros((S, features.shape[1]))
    for slot in range(S):
        if (slots == slot).any():
            out[slot] = features[slots == slot].astype(np.float64).mean(0)
    return out


@st.composite
def rows(draw):
    """A row's slots, ascending with gaps; padding after them or, as in rows of clips, anywhere between them."""
    slots = sorted(draw(st.lists(st.integers(0, S - 1), max_size=T)))
    places = range(len(slots))
    if draw(st.booleans()):
        places = sorted(draw(st.permutations(range(T)))[: len(slots)])
    row = np.full(T, S, np.int32)
    row[list(places)] = slots
    return row


@hypothesis.given(st.tuples(rows(), rows()), st.integers(0, 2**32 - 1))
def test_equals_the_loop(slots, seed):
    slots = np.stack(slots)
    features = np.random.default_rng(seed).normal(size=(2, T, E)).astype(np.float32)
    expected = np.stack([loop(f, s) for f, s in zip(features, slots, strict=True)])
    np.testing.assert_allclose(mean(features, slots, S), expected, atol=1e-5)


def order_is_promised(jaxpr):
    """Whether any operation is told that its indices ascend."""
    inner = [value.jaxpr for eqn in jaxpr.eqns for value in eqn.params.values() if hasattr(value, "jaxpr")]
    return any(eqn.params.get("indices_are_sorted") for eqn in jaxpr.eqns) or any(map(order_is_promised, inner))


def test_nothing_is_promised_of_the_order_of_slots():
    """On CPUs the promise changes nothing, so that no result would show a false one."""
    features, slots = jnp.zeros((1, T, E)), jnp.zeros((1, T), jnp.int32)
    assert not order_is_promised(jax.make_jaxpr(mean, static_argnums=2)(features, slots, S).jaxpr)
    told = jax.jit(lambda x, i: jax.ops.segment_sum(x, i, S, indices_are_sorted=True))
    assert order_is_promised(jax.make_jaxpr(told)(features[0], slots[0]).jaxpr)


def test_padding_counts_for_nothing():
    features = np.random.default_rng(0).normal(size=(1, T, E)).astype(np.float32)
    slots = np.array([[0, 0, 0, 2] + [S] * (T - 4)], np.int32)
    noisy = np.where((slots == S)[..., None], 1e30, features).astype(np.float32)
    np.testing.assert_array_equal(mean(features, slots, S), mean(noisy, slots, S))
    assert not mean(features, slots, S)[0, [1, *range(3, S)]].any()


def test_bfloat16_is_summed_in_float32():
    """256 + 1 is 256 in bfloat16: a sum in that dtype would lose the ones."""
    features = np.array([256.0] + [1.0] * (T - 1))[None, :, None].astype(jnp.bfloat16)
    result = mean(jnp.array(features), np.zeros((1, T), np.int32), S)
    assert result.dtype == jnp.bfloat16
    assert float(result[0, 0, 0]) == float(jnp.bfloat16((256 + T - 1) / T))


def test_gradient_is_shared_among_the_frames_of_a_segment():
    slots = np.array([[0] * 3 + [1] + [4] * 4 + [S] * (T - 8)], np.int32)
    weights = np.random.default_rng(0).normal(size=(1, S, E)).astype(np.float32)
    features = np.zeros((1, T, E), np.float32)
    gradient = jax.grad(lambda f: (segment_mean(f, slots, S) * weights).sum())(features)
    expected = np.zeros((T, E))
    for frame in range(8):
        expected[frame] = weights[0, slots[0, frame]] / (slots[0] == slots[0, frame]).sum()
    np.testing.assert_allclose(gradient[0], expected, atol=1e-6)
