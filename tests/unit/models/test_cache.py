"""Attention of decoding against sums in numpy, in every dtype and for several rows and beams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viavsp_jax.models.cache import attend

WIDTH, PROMPT, PLACES = 8, 16, 11


def draw(rows, beams, groups, heads, dtype):
    """Queries, keys and values of a token, and those of a prompt that all beams see and of what each beam may see."""
    rng = np.random.default_rng(rows * beams)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=(rows, *shape)), dtype)

    def past(places, seers):
        keys, values = normal(groups, places, WIDTH), normal(groups, places, WIDTH)
        return keys, values, jnp.asarray(rng.random((rows, places, seers)) < 0.7)

    new = normal(beams, heads, WIDTH), normal(beams, groups, WIDTH), normal(beams, groups, WIDTH)
    return *new, [past(PROMPT, 1), past(PLACES, beams)]


def summed(q, k, v, past):
    """The same in float64, one head of one beam at a time."""
    q, k, v, past = jax.tree.map(lambda x: np.asarray(x, np.float64), (q, k, v, past))
    out = np.zeros(q.shape)
    for row, beam, head in np.ndindex(q.shape[:3]):
        group = head * k.shape[2] // q.shape[2]
        keys, values = [k[row, beam, group]], [v[row, beam, group]]
        for past_keys, past_values, mask in past:
            seen = mask[row, :, min(beam, mask.shape[2] - 1)] > 0
            keys, values = [*keys, *past_keys[row, group][seen]], [*values, *past_values[row, group][seen]]
        weights = np.exp(keys @ q[row, beam, head] / WIDTH**0.5)
        out[row, beam, head] = weights @ values / weights.sum()
    return out.reshape(*q.shape[:2], -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("rows", "beams"), [(1, 1), (1, 5), (2, 1), (2, 2), (2, 5), (3, 5)])
@pytest.mark.parametrize(("groups", "heads"), [(2, 4), (3, 3)])
def test_attention_of_several_rows_and_beams(rows, beams, groups, heads, dtype, tolerance):
    """By the compiler's own options: on CPUs it has to have all the products."""
    drawn = draw(rows, beams, groups, heads, dtype)
    out = jax.jit(attend)(*drawn)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), summed(*drawn), atol=tolerance)
