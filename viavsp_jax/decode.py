"""Search for the best continuation, over a `tokens → logits` callback; knows nothing of speech.

Letters: B rows, G generated tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (tokens int32[B], cache) → (logits float32[B, V] after them, cache)
Extend = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def greedy(
    extend: Extend, logits: jax.Array, cache: Any, *, max_new_tokens: int, end_id: int
) -> tuple[jax.Array, jax.Array]:
    """Takes the likeliest token until every row has ended, in one loop that can be jitted.

    Args:
      extend: runs the model one token further. It is called for ended rows too; what it says of them is ignored.
      logits: float32[B, V] after the prompt.
      cache: what `extend` needs to know of the past, any pytree of arrays.
      max_new_tokens: G, the end token included.
      end_id: ends a row; also fills it up.

    Returns:
      tokens int32[B, G] and the sum of their log-probabilities float32[B].
    """
    rows = logits.shape[0]
    tokens = jnp.full((rows, max_new_tokens), end_id, jnp.int32)

    def take(step, tokens, scores, ended, logits):
        token = jnp.where(ended, end_id, jnp.argmax(logits, -1).astype(jnp.int32))
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], -1)[:, 0]
        scores = scores + jnp.where(ended, 0.0, log_probs)
        return tokens.at[:, step].set(token), scores, ended | (token == end_id)

    def running(carry):
        step, _, _, ended, _ = carry
        return (step < max_new_tokens) & ~ended.all()

    def body(carry):
        step, tokens, scores, ended, cache = carry
        logits, cache = extend(tokens[:, step - 1], cache)
        return step + 1, *take(step, tokens, scores, ended, logits), cache

    first = take(0, tokens, jnp.zeros(rows), jnp.zeros(rows, bool), logits)
    _, tokens, scores, _, _ = jax.lax.while_loop(running, body, (jnp.int32(1), *first, cache))
    return tokens, scores
