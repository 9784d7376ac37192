"""Random words of dropout: as good as independent ones, along rows and columns."""

import jax
import numpy as np
import pytest

from viavsp_jax.models.dropout import random_words

ROWS, COLUMNS = 1024, 512


def bits(shape, seed=0):
    """0 and 1: [32, rows, columns] of the words of a shape whose first axes are rows."""
    words = np.asarray(jax.jit(lambda key: random_words(key, shape))(jax.random.key(seed))).reshape(-1, shape[-1])
    return np.stack([(words >> bit & 1) for bit in range(32)]).astype(np.float32)


def test_words_depend_on_the_key_and_nothing_else():
    assert (bits((8, 16)) == bits((8, 16))).all() and (bits((8, 16)) != bits((8, 16), seed=1)).any()
    np.testing.assert_array_equal(bits((2, 4, 16)), bits((8, 16)))  # rows are rows, however they are counted


def test_every_bit_is_as_often_one_as_zero():
    found = bits((ROWS, COLUMNS))
    for axes, draws in (((1, 2), ROWS * COLUMNS), (1, ROWS), (2, COLUMNS)):
        off = (found.mean(axes) - 0.5) * 2 * draws**0.5  # in standard deviations
        assert np.abs(off).max() < 5.5
        if axes != (1, 2):
            assert 0.9 < np.std(off) < 1.1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bit, other", [(0, 0), (9, 9), (10, 0), (31, 31), (20, 10)])
def test_bits_of_any_two_rows_or_columns_are_independent(axis, bit, other):
    signs = 2 * bits((ROWS, COLUMNS)) - 1
    a, b = (np.moveaxis(signs[n], axis, 1) for n in (bit, other))
    correlations = a.T @ b / len(a) ** 0.5  # in standard deviations, of all pairs
    if bit == other:
        np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 6
    assert np.std(correlations) == pytest.approx(1, abs=0.02)


def test_patterns_of_two_rows_and_two_columns_do_not_repeat():
    """What a sum of a word for the row and one for the column would show: the signs of any rectangle's corners."""
    signs = 2 * bits((ROWS, COLUMNS)) - 1
    for bit in (0, 9, 10, 19, 20, 29, 31):
        corners = signs[bit, ::2, ::2] * signs[bit, 1::2, ::2] * signs[bit, ::2, 1::2] * signs[bit, 1::2, 1::2]
        assert abs(corners.mean()) * corners.size**0.5 < 4.5
