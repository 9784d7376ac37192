"""Greedy search against a plain loop over the same table of logits."""

import jax
import jax.numpy as jnp
import numpy as np

from viavsp_jax import decode

VOCABULARY, END, LIMIT = 7, 2, 12


@jax.jit
def run(table, first):
    """Greedy search where the logits depend on the last token and the number of tokens before it."""

    def extend(tokens, step):
        return table[step, tokens], step + 1

    return decode.greedy(extend, first, jnp.int32(0), max_new_tokens=LIMIT, end_id=END)


def search(table, first):
    tokens, score, logits = [], 0.0, first
    for step in range(LIMIT):
        token = int(np.argmax(logits))
        score += logits[token] - np.log(np.exp(logits.astype(np.float64)).sum())
        tokens.append(token)
        if token == END:
            break
        logits = table[step, token]
    return tokens + [END] * (LIMIT - len(tokens)), score


def test_equals_a_plain_loop():
    lengths = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = rng.normal(size=(LIMIT, VOCABULARY, VOCABULARY)).astype(np.float32)
        first = rng.normal(size=(5, VOCABULARY)).astype(np.float32)
        tokens, scores = run(table, first)
        for row in range(5):
            expected, score = search(table, first[row])
            assert tokens[row].tolist() == expected
            np.testing.assert_allclose(scores[row], score, atol=1e-4)
            lengths.add(expected.index(END) if END in expected else LIMIT)
    assert len(lengths) > 5, "the cases end at different steps"


def test_stops_as_soon_as_all_rows_have_ended():
    calls = []

    def extend(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.full((3, VOCABULARY), -1.0).at[:, END].set(5.0), cache

    first = jnp.full((3, VOCABULARY), -1.0).at[:, 4].set(5.0)
    tokens, _ = jax.jit(lambda x: decode.greedy(extend, x, (), max_new_tokens=30, end_id=END))(first)
    jax.effects_barrier()
    assert tokens.tolist() == [[4] + [END] * 29] * 3 and len(calls) == 1
