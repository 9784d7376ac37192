"""Search for the best continuations, over a callback that runs a model one token further; knows nothing of speech.

The rules are those of transformers' `generate`, so that an exported model decodes alike there: same ids, same scores.

Letters: B rows, M beams, G generated tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (tokens int32[B, M], parents int32[B, M], cache) → (logits float32[B, M, V] after them, cache): beam m of row b
# continues what beam parents[b, m] of that row was, with one more token. What is said of ended rows is ignored.
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
    repetition_penalty: float = static(1.0)
    do_sample: bool = static(False)  # draw tokens (candidates, in beam search) in place of taking the likeliest
    top_k: int = static(0)  # draw from so many of the likeliest tokens; 0: from all
    top_p: float = 1.0  # and of these from the fewest tokens that have this probability together
    seed: int = 0  # of what is drawn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A search at some step; a score of -inf marks a place where there is no hypothesis yet."""

    step: jax.Array  # int32, tokens chosen
    keys: jax.Array | None  # PRNG keys [B] to sample with
    tokens: jax.Array  # int32[B, M, G], open; filled up with the first of the end tokens
    scores: jax.Array  # float32[B, M], sums of log-probabilities, best first
    parents: jax.Array  # int32[B, M], which beam each was before its last token
    active: jax.Array  # bool[B]: the row's result may still change
    finished: jax.Array | None  # int32[B, M, G]; None where one path is followed to its end
    finished_scores: jax.Array | None  # float32[B, M], with the length penalty, best first


@dataclasses.dataclass(frozen=True)
class Search:
    """A search that can pause; a row's result does not depend on the other rows."""

    config: DecodingConfig
    end_ids: tuple[int, ...]  # each ends a hypothesis; the first one also fills it up
    # Makes a function of arrays [B, ...] and single numbers run apart on every device's own rows. Without it rows that
    # are spread over devices would be gathered: XLA cuts no `top_k`.
    by_rows: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function

    def start(self, logits: jax.Array, keys: jax.Array | None = None) -> State:
        """The search after its first token: float32[B, V] after the prompt, and, to sample with, PRNG keys [B]."""
        (rows, vocabulary), beams = logits.shape, self.config.num_beams
        tokens = jnp.full((rows, beams, self.config.max_new_tokens), self.end_ids[0], jnp.int32)
        none = jnp.full((rows, beams), -jnp.inf)
        state = State(
            step=jnp.int32(0),
            keys=keys if self.config.do_sample else None,
            tokens=tokens,
            scores=none.at[:, 0].set(0.0),  # all beams are the prompt: only one of them continues
            parents=jnp.zeros((rows, beams), jnp.int32),
            active=jnp.ones(rows, bool),
            finished=None if beams == 1 else tokens,
            finished_scores=None if beams == 1 else none,
        )
        return self._advance(state, jnp.broadcast_to(logits[:, None], (rows, beams, vocabulary)))

    def run(self, extend: Extend, state: State, cache: Any, until: int | jax.Array) -> tuple[State, Any]:
        """Goes on until there are `until` tokens or the search has ended; calls `extend` once for each more token.

        So a cache that is full can be replaced between two runs.
        """

        def body(carry):
            state, cache = carry
            last = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, 2, keepdims=False)
            logits, cache = extend(last, state.parents, cache)
            return self._advance(state, logits), cache

        return jax.lax.while_loop(lambda carry: running(carry[0]) & (carry[0].step < until), body, (state, cache))

    def _advance(self, state: State, logits: jax.Array) -> State:
        """One token more: logits float32[B, M, V] after the open beams."""
        one_more = _follow if self.config.num_beams == 1 else _branch
        return self.by_rows(functools.partial(one_more, config=self.config, end_ids=self.end_ids))(state, logits)


def running(state: State) -> jax.Array:
    """bool: the search has not ended."""
    return (state.step < state.tokens.shape[2]) & state.active.any()


def result(state: State) -> tuple[jax.Array, jax.Array]:
    """Tokens int32[B, M, G] and scores float32[B, M], best first.

    With one beam the score is the sum of the log-probabilities, with more it is that sum / length ** length_penalty;
    the end token counts in both.
    """
    if state.finished is None:
        return state.tokens, state.scores
    return state.finished, state.finished_scores


def process(
    scores: jax.Array, tokens: jax.Array, step: jax.Array, config: DecodingConfig, end_ids: tuple[int, ...]
) -> jax.Array:
    """Repetition penalty and least length, on logits or log-probabilities [B, M, V] after `step` tokens [B, M, G]."""
    if config.repetition_penalty != 1.0:
        old = jnp.take_along_axis(scores, tokens, -1)
        new = jnp.where(old < 0, old * config.repetition_penalty, old / config.repetition_penalty)
        # What is not there yet is written nowhere.
        index = jnp.where(_ids(tokens) < step, tokens, scores.shape[-1])
        write = jax.vmap(jax.vmap(lambda row, i, values: row.at[i].set(values, mode="drop")))
        scores = write(scores, index, new)
    return jnp.where(_ends(_ids(scores), end_ids) & (step < config.min_new_tokens), -jnp.inf, scores)


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


def best_candidates(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The `count` largest of every row of [B, M, V], the first ones where several are equal.

    Returns them float32[B, count] with their beams and tokens, int32[B, count] each. They are sought in each beam and
    then among those found: a row as a whole is never sorted, and no device needs rows of another one.
    """
    rows, beams, vocabulary = scores.shape
    each = min(count, vocabulary)
    values, tokens = (x.reshape(rows, beams * each) for x in jax.lax.top_k(scores, each))
    values, index = jax.lax.top_k(values, count)
    return values, index // each, _pick(tokens, index)


def _ids(scores: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def _ends(tokens: jax.Array, end_ids: tuple[int, ...]) -> jax.Array:
    """Which tokens are one of `end_ids`, bool of their shape."""
    return functools.reduce(jnp.logical_or, [tokens == one for one in end_ids])


def _gumbel(keys: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32[B, M, V]. The largest of log-probabilities plus this are a draw, without replacement, in its order."""
    return jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), shape[1:]))(keys)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """Along the second axis: [B, X, ...] and int32[B, Y] → [B, Y, ...]."""
    return jax.vmap(lambda value, i: value[i])(values, index)


def _follow(state: State, logits: jax.Array, config: DecodingConfig, end_ids: tuple[int, ...]) -> State:
    """Greedy search, or sampling: [B, 1, V]."""
    scores = choice = process(logits, state.tokens, state.step, config, end_ids)
    if state.keys is not None:
        choice = keep_likely(scores, config, 1) + _gumbel(state.keys, state.step, scores.shape)
    ended = ~state.active[:, None]
    token = jnp.where(ended, end_ids[0], jnp.argmax(choice, -1).astype(jnp.int32))
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(scores), token[..., None], -1)[..., 0]
    return dataclasses.replace(
        state,
        step=state.step + 1,
        tokens=state.tokens.at[:, :, state.step].set(token),
        scores=state.scores + jnp.where(ended, 0.0, log_prob),
        active=state.active & ~_ends(token[:, 0], end_ids),
    )


def _branch(state: State, logits: jax.Array, config: DecodingConfig, end_ids: tuple[int, ...]) -> State:
    """Beam search, or, with keys, the same with candidates drawn in place of the likeliest.

    Of (1 + E)M candidates at most EM end with one of E end tokens, E for each beam: M are left to go on with.
    """
    beams, step = config.num_beams, state.step
    count = (1 + len(end_ids)) * beams
    scores = process(jax.nn.log_softmax(logits), state.tokens, step, config, end_ids)
    if state.keys is not None:
        scores = keep_likely(scores, config, 1 + len(end_ids))  # so many candidates must be left
    scores = choice = scores + state.scores[..., None]
    if state.keys is not None:
        choice = scores + _gumbel(state.keys, step, scores.shape)
    values, parents, token = best_candidates(choice, count)
    scores = values if state.keys is None else jax.vmap(lambda row, m, v: row[m, v])(scores, parents, token)
    tokens = _pick(state.tokens, parents).at[:, :, step].set(token)
    ends = _ends(token, end_ids) | (step == config.max_new_tokens - 1)

    # Only the first M of the candidates may finish, which is stricter than being one of them all.
    may_finish = ends & (jnp.arange(count) < beams)[None] & state.active[:, None]
    with_penalty = jnp.where(may_finish, scores / _length_norm(step + 1, config), -jnp.inf)
    merged = jnp.concatenate([state.finished_scores, with_penalty], 1)
    finished_scores, best = jax.lax.top_k(merged, beams)
    finished = _pick(jnp.concatenate([state.finished, tokens], 1), best)

    open_scores, going_on = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), beams)
    return State(
        step=step + 1,
        keys=state.keys,
        tokens=_pick(tokens, going_on),
        scores=open_scores,
        parents=_pick(parents, going_on),
        active=state.active & _may_improve(step + 1, open_scores[:, 0], finished_scores, config),
        finished=finished,
        finished_scores=finished_scores,
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
