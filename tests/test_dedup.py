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
    """A row's slots, ascending with gaps, then padding."""
    slots = sorted(draw(st.lists(st.integers(0, S - 1), max_size=T)))
    return np.array(slots + [S] * (T - len(slots)), np.int32)


@hypothesis.given(st.tuples(rows(), rows()), st.integers(0, 2**32 - 1))
def test_equals_the_loop(slots, seed):
    slots = np.stack(slots)
    features = np.random.default_rng(seed).normal(size=(2, T, E)).astype(np.float32)
    expected = np.stack([loop(f, s) for f, s in zip(features, slots, strict=True)])
    np.testing.assert_allclose(mean(features, slots, S), expected, atol=1e-5)


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
