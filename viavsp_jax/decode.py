"""Search for the best continuations, over a callback that runs a model one token further; knows nothing of speech.

The rules are those of transformers' `generate`, so that an exported model decodes alike there: same ids, same scores.

Letters: B rows, M beams, G generated tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from viavsp_jax.errors import InputError

# (tokens int32[B, M], parents int32[B, M], cache) → (logits float32[B, M, V] after them, cache): beam m of row b
# continues what beam parents[b, m] of that row was, with one more token.
Extend = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field that decides what is compiled; the others may be traced."""
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How to search, in transformers' words; the defaults decode greedily."""

    max_new_tokens: int = static()  # G, the end token included
    num_beams: int = static(1)
    # Whether a row ends as soon as it has num_beams hypotheses. False: when the best open beam scores below all of
    # them at its present length; "never": at the length that favours it most.
    early_stopping: bool | str = static(False)
    min_new_tokens: int = 0  # the end token cannot come before so many others
    length_penalty: float = 1.0  # a hypothesis scores log-probability / length ** length_penalty
    # Divides what speaks for a token that was generated before: its logit, or in beam search its log-probability.
    repetition_penalty: float = 1.0
    do_sample: bool = static(False)  # draw tokens (candidates, in beam search) in place of taking the likeliest
    top_k: int = static(0)  # draw from so many of the likeliest tokens; 0: from all
    top_p: float = 1.0  # and of these from the fewest tokens that have this probability together
    seed: int = 0  # of what is drawn


def load_decoding_config(settings: Mapping[str, Any]) -> DecodingConfig:
    """Checks a user's settings; InputError names the one that is wrong."""
    known = {field.name for field in dataclasses.fields(DecodingConfig)}
    if unknown := sorted(set(settings) - known):
        raise InputError(f"decoding has no setting {', '.join(unknown)}: expected some of {', '.join(sorted(known))}")
    if "max_new_tokens" not in settings:
        raise InputError("decoding.max_new_tokens is missing")
    config = DecodingConfig(**settings)
    for name, right, expected in (
        ("max_new_tokens", config.max_new_tokens >= 1, "at least 1"),
        ("num_beams", config.num_beams >= 1, "at least 1"),
        ("early_stopping", config.early_stopping in (False, True, "never"), "False, True or 'never'"),
        ("min_new_tokens", 0 <= config.min_new_tokens <= config.max_new_tokens, "from 0 to max_new_tokens"),
        ("repetition_penalty", config.repetition_penalty > 0, "above 0"),
        ("top_k", config.top_k >= 0, "at least 0"),
        ("top_p", 0 <= config.top_p <= 1, "from 0 to 1"),
    ):
        if not right:
            raise InputError(f"decoding.{name} is {getattr(config, name)!r}: expected {expected}")
    return config


def decode(
    extend: Extend, logits: jax.Array, cache: Any, config: DecodingConfig, end_id: int, keys: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Continues every row, in one loop that can be jitted; a row's result does not depend on the other rows.

    Args:
      extend: runs the model one token further. It is called for ended rows too; what it says of them is ignored.
      logits: float32[B, V] after the prompt.
      cache: what `extend` needs to know of the past, any pytree of arrays.
      config: its num_beams is M.
      end_id: ends a hypothesis; also fills it up.
      keys: PRNG keys [B], one a row, to sample with.

    Returns:
      tokens int32[B, M, G] and scores float32[B, M], best first. With one beam the score is the sum of the
      log-probabilities, with more it is that sum / length ** length_penalty; the end token counts in both.
    """
    search = _one_path if config.num_beams == 1 else _beam_search
    return search(extend, logits, cache, config, end_id, keys if config.do_sample else None)


def process(scores: jax.Array, seen: jax.Array, step: jax.Array, config: DecodingConfig, end_id: int) -> jax.Array:
    """Repetition penalty and least length on logits or log-probabilities [..., V]; `seen` bool[..., V]."""
    penalized = jnp.where(scores < 0, scores * config.repetition_penalty, scores / config.repetition_penalty)
    too_early = (_ids(scores) == end_id) & (step < config.min_new_tokens)
    return jnp.where(too_early, -jnp.inf, jnp.where(seen, penalized, scores))


def keep_likely(scores: jax.Array, config: DecodingConfig, least: int) -> jax.Array:
    """Sets to -inf all but the `top_k` likeliest tokens, then of these all but the fewest that make up `top_p`.

    scores: [..., V], logarithms of probabilities up to a constant. At least `least` tokens stay.
    """
    if config.top_k:
        kept = jax.lax.top_k(scores, min(max(config.top_k, least), scores.shape[-1]))[0]
        scores = jnp.where(scores >= kept[..., -1:], scores, -jnp.inf)
    ascending = jnp.sort(scores, -1)
    dropped = (jnp.cumsum(jax.nn.softmax(ascending), -1) <= 1 - config.top_p).sum(-1, keepdims=True)
    threshold = jnp.take_along_axis(ascending, jnp.minimum(dropped, scores.shape[-1] - least), -1)
    return jnp.where(scores >= threshold, scores, -jnp.inf)


def _ids(scores: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def _gumbel(keys: jax.Array, step: jax.Array, count: int) -> jax.Array:
    """float32[B, count]. The largest of log-probabilities plus this are a draw, without replacement, in its order."""
    return jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), (count,)))(keys)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """Along the second axis: [B, X, ...] and int32[B, Y] → [B, Y, ...]."""
    return jax.vmap(lambda value, i: value[i])(values, index)


def _one_path(extend, logits, cache, config, end_id, keys):
    """Greedy search, or sampling."""
    limit, (rows, vocabulary) = config.max_new_tokens, logits.shape

    def take(step, state, logits):
        tokens, total, seen, ended = state
        scores = choice = process(logits, seen, step, config, end_id)
        if keys is not None:
            choice = keep_likely(scores, config, 1) + _gumbel(keys, step, vocabulary)
        token = jnp.where(ended, end_id, jnp.argmax(choice, -1).astype(jnp.int32))
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(scores), token[:, None], -1)[:, 0]
        total = total + jnp.where(ended, 0.0, log_prob)
        seen = seen | (_ids(seen) == token[:, None])
        return tokens.at[:, step].set(token), total, seen, ended | (token == end_id)

    def running(carry):
        step, (_, _, _, ended), _ = carry
        return (step < limit) & ~ended.all()

    def body(carry):
        step, state, cache = carry
        last = jax.lax.dynamic_slice_in_dim(state[0], step - 1, 1, axis=1)
        logits, cache = extend(last, jnp.zeros_like(last), cache)
        return step + 1, take(step, state, logits[:, 0]), cache

    tokens = jnp.full((rows, limit), end_id, jnp.int32)
    state = tokens, jnp.zeros(rows), jnp.zeros((rows, vocabulary), bool), jnp.zeros(rows, bool)
    state = take(jnp.int32(0), state, logits)
    _, (tokens, total, _, _), _ = jax.lax.while_loop(running, body, (jnp.int32(1), state, cache))
    return tokens[:, None], total[:, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Beams:
    """Beams of all rows in the midst of a search; a score of -inf marks a place where there is none yet."""

    tokens: jax.Array  # int32[B, M, G], open
    scores: jax.Array  # float32[B, M], sums of log-probabilities, best first
    parents: jax.Array  # int32[B, M], which beam each was before its last token
    seen: jax.Array  # bool[B, M, V], the tokens in it
    finished: jax.Array  # int32[B, M, G]
    finished_scores: jax.Array  # float32[B, M], with the length penalty, best first
    active: jax.Array  # bool[B]: an open beam may still enter the finished ones


def _beam_search(extend, logits, cache, config, end_id, keys):
    """Beam search, or, with keys, the same with candidates drawn in place of the likeliest."""
    limit, beams, (rows, vocabulary) = config.max_new_tokens, config.num_beams, logits.shape

    def running(carry):
        step, state, _ = carry
        return (step < limit) & state.active.any()

    def body(carry):
        step, state, cache = carry
        logits, cache = extend(state.tokens[:, :, step - 1], state.parents, cache)
        return step + 1, _advance(step, state, logits, config, end_id, keys), cache

    tokens, none = jnp.full((rows, beams, limit), end_id, jnp.int32), jnp.full((rows, beams), -jnp.inf)
    state = _Beams(
        tokens=tokens,
        scores=none.at[:, 0].set(0.0),  # all beams are the prompt: only one of them continues
        parents=jnp.zeros((rows, beams), jnp.int32),
        seen=jnp.zeros((rows, beams, vocabulary), bool),
        finished=tokens,
        finished_scores=none,
        active=jnp.ones(rows, bool),
    )
    repeated = jnp.broadcast_to(logits[:, None], (rows, beams, vocabulary))
    state = _advance(jnp.int32(0), state, repeated, config, end_id, keys)
    _, state, _ = jax.lax.while_loop(running, body, (jnp.int32(1), state, cache))
    return state.finished, state.finished_scores


def _advance(step, state: _Beams, logits, config: DecodingConfig, end_id: int, keys) -> _Beams:
    """One token more: logits float32[B, M, V] after the open beams → the next open and finished ones.

    Of 2M candidates at most M end with the end token, one for each beam, so that M are left to go on with.
    """
    rows, beams, vocabulary = logits.shape
    scores = process(jax.nn.log_softmax(logits), state.seen, step, config, end_id)
    if keys is not None:
        scores = keep_likely(scores, config, 2)  # 2M candidates must be left
    scores = choice = (scores + state.scores[..., None]).reshape(rows, beams * vocabulary)
    if keys is not None:
        choice = scores + _gumbel(keys, step, beams * vocabulary)
    index = jax.lax.top_k(choice, 2 * beams)[1]
    parents, token, scores = index // vocabulary, index % vocabulary, _pick(scores, index)
    tokens = _pick(state.tokens, parents).at[:, :, step].set(token)
    ends = (token == end_id) | (step == config.max_new_tokens - 1)

    # Only the first M of the candidates may finish, which is stricter than being one of the 2M.
    may_finish = ends & (jnp.arange(2 * beams) < beams)[None] & state.active[:, None]
    with_penalty = jnp.where(may_finish, scores / _length_norm(step + 1, config), -jnp.inf)
    merged = jnp.concatenate([state.finished_scores, with_penalty], 1)
    finished_scores, best = jax.lax.top_k(merged, beams)
    finished = _pick(jnp.concatenate([state.finished, tokens], 1), best)

    open_scores, going_on = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), beams)
    parents, token = _pick(parents, going_on), _pick(token, going_on)
    seen = _pick(state.seen, parents)
    return _Beams(
        tokens=_pick(tokens, going_on),
        scores=open_scores,
        parents=parents,
        seen=seen | (_ids(seen) == token[..., None]),
        finished=finished,
        finished_scores=finished_scores,
        active=state.active & _may_improve(step + 1, open_scores[:, 0], finished_scores, config),
    )


def _may_improve(length, best_open, finished_scores, config: DecodingConfig) -> jax.Array:
    """Which rows go on, bool[B]: best_open float32[B] after `length` tokens, finished_scores float32[B, M]."""
    incomplete = ~jnp.isfinite(finished_scores).all(-1)
    if config.early_stopping is True:
        return incomplete
    if config.early_stopping == "never":
        length = jnp.where(config.length_penalty > 0, config.max_new_tokens, length)
    return incomplete | (best_open / _length_norm(length, config) > finished_scores[:, -1])


def _length_norm(length, config: DecodingConfig) -> jax.Array:
    return jnp.asarray(length, jnp.float32) ** config.length_penalty
