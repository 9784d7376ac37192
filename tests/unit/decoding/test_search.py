"""The search on tables of logits: when it stops, that rows do not meet, and what sampling draws.

That its results are those of transformers is shown in test_decode_transformers.py.
"""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from whole_search import decode

from viavsp_jax.decoding.search import (
    DecodingConfig,
    Search,
    best_candidates,
    keep_likely,
    result,
    running,
)
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.settings import check_decoding

V, END, LIMIT = 7, 2, 12
SAMPLING = DecodingConfig(max_new_tokens=LIMIT, do_sample=True, top_p=0.9)


@jax.jit
def search(table, first, config, keys=None):
    """Logits that depend on the last token and the number of tokens before it: table [G, V, V], first [B, V]."""

    def extend(tokens, parents, step):
        return table[step][tokens], step + 1

    return decode(extend, first, jnp.int32(0), config, END, keys)


def draw(seed, rows=6, vocabulary=V):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(LIMIT, vocabulary, vocabulary)).astype(np.float32)
    return table, rng.normal(size=(rows, vocabulary)).astype(np.float32)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("beams", [1, 3])
def test_stops_as_soon_as_all_rows_have_ended(beams):
    calls = []

    def extend(tokens, parents, cache):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.full((3, beams, V), -1.0).at[..., END].set(9.0), cache

    first = jnp.full((3, V), -1.0).at[:, 4].set(5.0)
    config = DecodingConfig(max_new_tokens=30, num_beams=beams, early_stopping=True)
    tokens, _ = jax.jit(lambda x: decode(extend, x, (), config, END))(first)
    jax.effects_barrier()
    assert tokens[:, 0].tolist() == [[4] + [END] * 29] * 3 and len(calls) == 1


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("do_sample", [False, True])
def test_rows_do_not_meet(beams, do_sample):
    config = dataclasses.replace(SAMPLING, num_beams=beams, do_sample=do_sample)
    table, first = draw(0)
    tokens, scores = search(table, first, config, keys(6))
    assert len(np.unique(tokens[:, 0], axis=0)) > 3
    order = np.array([4, 1, 1, 4, 5, 4])
    some, their_scores = search(table, first[order], config, keys(6)[order])
    np.testing.assert_array_equal(some, tokens[order])
    np.testing.assert_array_equal(their_scores, scores[order])


@pytest.mark.parametrize("config", [
    DecodingConfig(max_new_tokens=LIMIT), dataclasses.replace(SAMPLING, num_beams=3),
    DecodingConfig(max_new_tokens=LIMIT, num_beams=3, repetition_penalty=1.3),
])  # fmt: skip
def test_a_search_can_pause(config):
    table, first = draw(6)

    def extend(tokens, parents, step):
        return jnp.asarray(table)[step][tokens], step + 1

    rules = Search(config, (END,))
    go_on = jax.jit(functools.partial(rules.run, extend))
    state, step = jax.jit(rules.start)(first, keys(6)), jnp.int32(0)
    for until in (1, 4, 5, LIMIT + 9):
        assert running(state)
        state, step = go_on(state, step, until)
        assert int(step) == int(state.step) - 1 <= until - 1
    assert not running(state)
    for found, expected in zip(result(state), search(table, first, config, keys(6)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("vocabulary, count", [(300, 6), (5, 10), (2, 6)])
def test_best_candidates_of_many_equal_ones(vocabulary, count):
    """The first of equal ones, of the whole row laid out flat; with -inf among them."""
    scores = np.random.default_rng(0).integers(0, 4, (50, 3, vocabulary)).astype(np.float32)
    scores[scores == 0] = -np.inf
    scores[:, 1] -= np.float32(1)
    flat = scores.reshape(50, -1)
    expected = np.argsort(-flat, axis=1, kind="stable")[:, :count]
    values, beams, tokens = jax.jit(best_candidates, static_argnums=1)(scores, count)
    np.testing.assert_array_equal(beams * vocabulary + tokens, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(flat, expected, 1))


def test_hypotheses_of_one_row_differ_and_are_sorted():
    tokens, scores = search(*draw(1), DecodingConfig(max_new_tokens=LIMIT, num_beams=5))
    assert all(len(np.unique(row, axis=0)) == 5 for row in tokens)
    assert (np.diff(scores) <= 0).all() and np.isfinite(scores).all()


def test_fewer_tokens_than_beams():
    """Places that nothing can fill score -inf; nothing else does."""
    tokens, scores = search(*draw(2, vocabulary=4), DecodingConfig(max_new_tokens=1, num_beams=5))
    assert np.isfinite(scores).sum(1).tolist() == [4] * 6 and np.isneginf(scores[:, -1]).all()
    assert sorted(tokens[0, :4, 0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("top_k", [0, 1, 7, 50])
@pytest.mark.parametrize("least", [1, 2])
def test_top_k_and_top_p_equal_transformers(top_k, least):
    scores = np.random.default_rng(0).normal(size=(500, 40), scale=3).astype(np.float32)
    scores[:, 5] = -np.inf
    for top_p in (0.0, 1e-4, 0.3, 0.9, 0.99):
        expected = torch.tensor(scores)
        if top_k:
            expected = transformers.TopKLogitsWarper(top_k, min_tokens_to_keep=least)(None, expected)
        expected = transformers.TopPLogitsWarper(top_p, min_tokens_to_keep=least)(None, expected).numpy()
        config = DecodingConfig(max_new_tokens=1, do_sample=True, top_k=top_k, top_p=top_p)
        np.testing.assert_array_equal(keep_likely(jnp.array(scores), config, least), expected)
        assert np.isfinite(expected).sum(1).min() == least or top_p > 0.9


def test_sampling_follows_the_key_and_nearly_no_mass_is_greedy():
    table, first = draw(3)
    tokens, scores = search(table, first, SAMPLING, keys(6))
    again, other = (search(table, first, SAMPLING, keys(6, seed))[0] for seed in (0, 1))
    assert (tokens == again).all() and (tokens != other).any(-1).all()
    greedy, their_scores = search(table, first, DecodingConfig(max_new_tokens=LIMIT))
    assert (tokens != greedy).any() and (scores <= their_scores).any()
    for nearly_greedy in ({"top_p": 1e-6}, {"top_k": 1}):
        tokens, scores = search(table, first, dataclasses.replace(SAMPLING, **nearly_greedy), keys(6))
        np.testing.assert_array_equal(tokens, greedy)
        np.testing.assert_allclose(scores, their_scores, atol=1e-5)


def assert_drawn_from(expected, sequences):
    """Chi-square test of drawn sequences [count, G] against their exact probabilities."""
    found = collections.Counter(map(tuple, np.asarray(sequences).tolist()))
    assert abs(sum(expected.values()) - 1) < 1e-6 and set(found) <= set(expected)
    count = len(sequences)
    common = [s for s, p in expected.items() if p * count >= 10]
    rare = 1 - sum(expected[s] for s in common)
    observed = [found[s] for s in common] + [count - sum(found[s] for s in common)]
    predicted = [expected[s] * count for s in common] + [rare * count]
    if rare * count < 10:
        observed[-2:], predicted[-2:] = [sum(observed[-2:])], [sum(predicted[-2:])]
    assert len(observed) > 5 and scipy.stats.chisquare(observed, predicted, sum_check=False).pvalue > 1e-3


def filtered(logits, top_p, least=1):
    """float64 log-probabilities, those outside of the likeliest tokens -inf."""
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    order = np.argsort(-log_probs)
    before = np.cumsum(np.exp(log_probs[order])) - np.exp(log_probs[order])
    kept = order[(before < top_p) | (np.arange(V) < least)]
    return np.where(np.isin(np.arange(V), kept), log_probs, -np.inf)


def test_sampling_draws_from_the_exact_distribution():
    table, (first,) = draw(4, rows=1)
    config = DecodingConfig(max_new_tokens=2, do_sample=True, top_p=0.8)
    tokens, _ = search(table, np.tile(first, (20_000, 1)), config, keys(20_000))
    expected = collections.Counter()
    for a in range(V):
        after = filtered(table[0, a], 0.8) if a != END else np.where(np.arange(V) == END, 0, -np.inf)
        for b in range(V):
            p, q = np.exp(filtered(first, 0.8)), np.exp(after)
            if p[a] * q[b]:
                expected[a, b] += p[a] / p.sum() * q[b] / q.sum()
    assert 4 < len(expected) < V * V
    assert_drawn_from(expected, tokens[:, 0])


def ordered_draws(candidates, count):
    """[(probability, candidates in the order drawn)] of drawing without replacement by the weights exp(score)."""
    weight = {c: np.exp(score) for c, score in candidates.items() if np.isfinite(score)}
    for chosen in itertools.permutations(weight, count):
        left, p = sum(weight.values()), 1.0
        for c in chosen:
            p, left = p * weight[c] / left, left - weight[c]
        yield p, chosen


def test_beam_sampling_draws_from_the_exact_distribution():
    """Two beams, two tokens: every order in which candidates can be drawn, by the rules of transformers."""
    table, (first,) = draw(5, rows=1)
    config = DecodingConfig(max_new_tokens=2, num_beams=2, do_sample=True, top_p=0.9, length_penalty=0.5)
    tokens, _ = search(table, np.tile(first, (20_000, 1)), config, keys(20_000))
    start = {(a,): score for a, score in enumerate(filtered(first, 0.9, 2))}
    beginnings = collections.Counter()  # (open beams, hypothesis that has ended or None)
    for p, drawn in ordered_draws(start, 4):
        going_on = sorted((c for c in drawn if c != (END,)), key=start.get)[-2:]
        ended = (END,) if (END,) in drawn[:2] else None
        beginnings[tuple(going_on), ended] += p
    expected = collections.Counter()
    for (going_on, ended), p in beginnings.items():
        scores = {
            (*c, b): start[c] + score for c in going_on for b, score in enumerate(filtered(table[0, c[0]], 0.9, 2))
        }
        for q, drawn in ordered_draws(scores, 2):
            final = {c: scores[c] / 2**0.5 for c in drawn} | ({(END, END): start[ended]} if ended else {})
            expected[max(final, key=final.get)] += p * q
    assert_drawn_from(expected, tokens[:, 0])


@pytest.mark.parametrize("name, value", [
    ("num_beams", 0), ("max_new_tokens", 0), ("early_stopping", "always"), ("min_new_tokens", 9),
    ("repetition_penalty", 0.0), ("top_k", -1), ("top_p", 1.5), ("beam", 3),
])  # fmt: skip
def test_wrong_settings_are_named(name, value):
    settings = {"max_new_tokens": 8, "num_beams": 5}
    check_decoding(settings)
    with pytest.raises(InputError, match=name):
        check_decoding(settings | {name: value})


def test_length_is_asked_for():
    with pytest.raises(InputError, match="max_new_tokens is missing"):
        check_decoding({"num_beams": 5})
