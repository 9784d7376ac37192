"""Attention over packed rows: every kernel and window against attention with a full mask, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.models.rope import RopeScaling, rotate


def make_rows(lengths, size, heads, groups, width):
    """Queries, keys, values, segment ids and positions of rows whose texts have `lengths`."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (
        jax.random.normal(key, (len(lengths), size, count, width))
        for key, count in zip(keys, (heads, groups, groups), strict=False)
    )
    ids, positions = np.zeros((2, len(lengths), size), np.int32)
    for row, sizes in enumerate(lengths):
        for number, (start, length) in enumerate(zip(np.cumsum([0, *sizes]), sizes, strict=False), 1):
            ids[row, start : start + length] = number
            # Those behind an instruction; attention without one does not look at positions.
            positions[row, start : start + length] = np.arange(length) + sizes[0] * (number > 1)
    return q, k, v, jnp.asarray(ids), jnp.asarray(positions)


def by_heads(attention, seen=None, theta=None):
    """`attention` of arrays with an axis of heads; without `theta`, nothing is rotated."""

    def attend(q, k, v, ids, positions):
        flat = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
        turning = turned(positions, q.shape[-1], theta)
        return attention(*flat, turning, ids, positions, None if seen is None else jnp.int32(seen))

    return attend


def turned(positions, width, theta):
    if theta is None:
        return jnp.tile(jnp.repeat(jnp.array([1.0, 0.0]), width), (*positions.shape, 1))
    return RopeScaling().table(positions, theta, width, jnp.float32)


def values_and_gradients(attention, q, k, v, ids, positions):
    """Of a random weighting of the outputs at real positions."""
    weight = jax.random.normal(jax.random.key(1), (*q.shape[:2], q.shape[2] * q.shape[3])) * (ids > 0)[..., None]

    def loss(q, k, v):
        out = attention(q, k, v, ids, positions)
        return jnp.sum(out * weight), out * (ids > 0)[..., None]

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def with_full_mask(q, k, v, ids, positions, sees=10**6, instruction=False):
    """`instruction`: the first text of a row is one."""
    batch, size, heads, width = q.shape
    k, v = (jnp.repeat(x, heads // x.shape[2], 2) for x in (k, v))
    seen = (ids[:, :, None] == ids[:, None]) | (instruction & (ids[:, :, None] > 1) & (ids[:, None] == 1))
    seen &= (ids > 0)[:, None] & np.tri(size, dtype=bool)[None]
    seen &= positions[:, :, None] - positions[:, None] < sees
    scores = jnp.where(seen[:, None], jnp.einsum("bqhk,bchk->bhqc", q, k) / width**0.5, -1e9)
    return jnp.einsum("bhqc,bchk->bqhk", jax.nn.softmax(scores), v).reshape(batch, size, heads * width)


@pytest.mark.parametrize("window", [None, 7, 8, 16, 50])
@pytest.mark.parametrize("groups", [4, 2])
def test_a_window_as_long_as_the_longest_utterance_changes_nothing(window, groups):
    rows = make_rows([(7, 7, 3, 6, 7), (2, 1, 7, 5), ()], 33, 4, groups, 8)
    found = values_and_gradients(by_heads(PackedAttention(window)), *rows)
    for a, b in zip(found, values_and_gradients(with_full_mask, *rows), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("window", [65, 66, 150])
def test_a_window_of_several_blocks(window):
    rows = make_rows([(65, 60, 64, 3), (50, 65, 65)], 200, 2, 1, 8)
    found = values_and_gradients(by_heads(PackedAttention(window)), *rows)
    for a, b in zip(found, values_and_gradients(with_full_mask, *rows), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("sees", [1, 5, 64, 70, 300])
@pytest.mark.parametrize("window", [None, 150])
def test_tokens_that_see_so_many_positions(sees, window):
    """Of long utterances, in several blocks."""
    rows = make_rows([(150, 50), (20, 130)], 200, 2, 1, 8)
    attention = by_heads(PackedAttention(window), sees)
    expected = values_and_gradients(functools.partial(with_full_mask, sees=sees), *rows)
    for a, b in zip(values_and_gradients(attention, *rows), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


BEHIND_AN_INSTRUCTION = {
    "few": ([(5, 30, 1, 2, 20), (1, 30, 29), (9,), ()], 60),
    "over a block": ([(70, 100, 60, 20), (64, 66, 66, 54)], 250),
    "longer than utterances": ([(100, 3, 2, 1, 14), (65, 1)], 120),
}


@pytest.mark.parametrize("case", BEHIND_AN_INSTRUCTION)
@pytest.mark.parametrize("sees", [None, 1, 4, 40, 90])
@pytest.mark.parametrize("whole", [True, False])
def test_utterances_that_share_an_instruction(case, sees, whole):
    """With the bounds as tight as they can be, and with loose ones."""
    lengths, size = BEHIND_AN_INSTRUCTION[case]
    rows = make_rows(lengths, size, 4, 2, 8)
    longest = max(sizes[0] for sizes in lengths if sizes)
    window = None if whole else max(sizes[0] + max(sizes[1:], default=0) for sizes in lengths if sizes)
    attention = by_heads(PackedAttention(window, instruction=longest + 50 * whole), sees)
    masked = functools.partial(with_full_mask, sees=sees or 10**6, instruction=True)
    expected = values_and_gradients(masked, *rows)
    for a, b in zip(values_and_gradients(attention, *rows), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=4e-6)


def test_a_window_that_is_too_short_does():
    rows = make_rows([(20,)], 20, 2, 2, 8)
    out, expected = (values_and_gradients(f, *rows)[0] for f in (by_heads(PackedAttention(9)), with_full_mask))
    np.testing.assert_allclose(out[:, :9], expected[:, :9], atol=2e-6)
    assert np.abs(out - expected)[:, 18:].max() > 0.01


TPU_CASES = {
    "utterances alone": ([(100, 90, 71, 99), (7, 100)], 400, 100, 0, None),
    "a row of less than a tile": ([(3, 40), (11, 60)], 100, 90, 11, None),
    "a window of several tiles": ([(20, 300, 200), (1, 330)], 600, None, 20, None),
    "tokens that see 40 positions": ([(50, 30, 90, 70), (9, 100, 80), ()], 300, 160, 50, 40),
    "tokens that see none of the instruction": ([(9, 30, 90, 70)], 256, 128, 16, 1),
}


TPU_SHAPES = ((2, 2, 128), (4, 2, 128), (2, 1, 256))


@pytest.mark.parametrize("case, heads, groups, width", [
    pytest.param(case, *shape, marks=() if place % 3 == number else pytest.mark.full)  # in the suite each case once
    for place, case in enumerate(TPU_CASES) for number, shape in enumerate(TPU_SHAPES)
])  # fmt: skip
def test_the_tpu_kernel(case, heads, groups, width):
    """The kernel itself, run by Pallas' interpreter, rotation included."""
    lengths, size, window, instruction, sees = TPU_CASES[case]
    rows = make_rows(lengths, size, heads, groups, width)
    with pltpu.force_tpu_interpret_mode():
        attention = by_heads(PackedAttention(window, "tpu", instruction), sees, theta=50.0)
        found = values_and_gradients(attention, *rows)

    def rotated(q, k, v, ids, positions):
        turning = turned(positions, width, 50.0)
        q, k = rotate(q, turning), rotate(k, turning)
        return with_full_mask(q, k, v, ids, positions, sees or 10**6, instruction > 0)

    for a, b in zip(found, values_and_gradients(rotated, *rows), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
