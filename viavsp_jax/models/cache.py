"""The cache of beam search: keys and values of prompts and of generated tokens, and attention over them.

Letters: N layers, B rows, M beams (continuations of one prompt), S prompt positions, C slots for generated tokens,
H query heads, G key/value heads, h = H / G, K head width.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Keys and values of one layer and who may see them: k, v [B, G, C, K], mask bool[B, C, M], or [B, C, 1] for all beams.
Past = tuple[jax.Array, jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The prompt's keys and values once per row, then those of every step's M tokens, one slot each.

    Keys and values stay where they are written. A beam that continues another one takes over what that one sees, so
    the reordering of a beam search gathers `visible` only, and the beams of a row read its keys and values together.
    The slot axis comes before the head width, so that no matrix product has to transpose.
    """

    prompt_k: jax.Array  # [N, B, G, S, K], rotated
    prompt_v: jax.Array  # [N, B, G, S, K]
    lengths: jax.Array  # int32[B], of the prompts
    k: jax.Array  # [N, B, G, C, K], rotated
    v: jax.Array  # [N, B, G, C, K]
    visible: jax.Array  # bool[B, M, C]: each beam's own past
    positions: jax.Array  # int32[B, C], of the tokens in the slots
    steps: jax.Array  # int32: tokens that every beam has been extended by
    index: jax.Array  # int32: where the next M tokens are written

    @classmethod
    def empty(cls, k: jax.Array, v: jax.Array, lengths: jax.Array, capacity: int, beams: int) -> "Cache":
        """With the keys and values [N, B, G, S, K] of prompts, and room for `capacity` tokens of each beam."""
        batch, slots = len(lengths), capacity * beams
        room = jnp.zeros((*k.shape[:3], slots, k.shape[-1]), k.dtype)
        return cls(
            prompt_k=k, prompt_v=v, lengths=lengths, k=room, v=room, visible=jnp.zeros((batch, beams, slots), bool),
            positions=jnp.zeros((batch, slots), jnp.int32), steps=jnp.int32(0), index=jnp.int32(0),
        )  # fmt: skip

    def seen(
        self, layer: tuple[jax.Array, ...], visible: jax.Array, now: jax.Array, window: jax.Array | None
    ) -> list[Past]:
        """What tokens at the positions `now`, int32[B], may see.

        Args:
          layer: prompt_k, prompt_v, k and v of one layer.
          visible: bool[B, M, C], of the generated ones.
          window: int32, positions that a token sees, its own included; None: all.
        """
        places = jnp.arange(layer[0].shape[2])[None]
        prompt, generated = places < self.lengths[:, None], visible.swapaxes(1, 2)
        if window is not None:
            prompt = prompt & (now[:, None] - places < window)
            generated = generated & (now[:, None] - self.positions < window)[..., None]
        return [(*layer[:2], prompt[..., None]), (*layer[2:], generated)]

    def with_tokens(self, k: jax.Array, v: jax.Array, visible: jax.Array, now: jax.Array) -> "Cache":
        """The cache with one more token of each beam, which sees itself and what is `visible`, bool[B, M, C].

        k, v [N, B, G, M, K]; now int32[B], the tokens' positions.
        """
        batch, beams = visible.shape[:2]
        itself = jnp.tile(jnp.eye(beams, dtype=bool), (batch, 1, 1))
        put, here = jax.lax.dynamic_update_slice, (0, 0, 0, self.index, 0)
        return dataclasses.replace(
            self,
            k=put(self.k, k, here),
            v=put(self.v, v, here),
            visible=put(visible, itself, (0, 0, self.index)),
            positions=put(self.positions, jnp.tile(now[:, None], (1, beams)), (0, self.index)),
            steps=self.steps + 1,
            index=self.index + beams,
        )

    @property
    def free(self) -> jax.Array:
        """int32: tokens per beam that can still be added."""
        beams, slots = self.visible.shape[1:]
        return (slots - self.index) // beams

    @property
    def live_slots(self) -> jax.Array:
        """int32: slots that any beam sees, in the row that has most of them."""
        return self.visible.any(1).sum(-1).max()


def compact(cache: Cache, size: int) -> Cache:
    """The same past in a cache of `size` slots, at least `live_slots`; slots that no beam sees any more are freed.

    The beams of a row share most of their past, so few slots stay live after many steps.
    """
    used = cache.visible.any(1)
    kept = jnp.argsort(~used, axis=-1, stable=True)[:, :size]
    padding = (0, size - kept.shape[1])

    def move(x: jax.Array, axis: int) -> jax.Array:
        """The kept slots of [B, ...] along `axis`."""
        x = jax.vmap(functools.partial(jnp.take, axis=axis - 1, mode="clip"))(x, kept)
        return jnp.pad(x, [padding if i == axis else (0, 0) for i in range(x.ndim)])

    k, v = (jax.vmap(functools.partial(move, axis=2))(x) for x in (cache.k, cache.v))
    visible, positions = move(cache.visible, 2), move(cache.positions, 1)
    return dataclasses.replace(cache, k=k, v=v, visible=visible, positions=positions, index=cache.live_slots)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, past: Sequence[Past]) -> jax.Array:
    """Softmax attention of one new token of each beam over what it may see of the past and over itself.

    q [B, M, H, K], k and v [B, M, G, K] → [B, M, H·K]. Scores and softmax are float32; nothing is joined in memory.
    """
    batch, beams, heads, width = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, beams, groups, heads // groups, width) * width**-0.5
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    own = product("bmghk,bmgk->bgmh", q, k)
    scores = [
        jnp.where(mask[:, None, :, :, None], product("bmghk,bgck->bgcmh", q, keys), -jnp.inf) for keys, _, mask in past
    ]
    top = functools.reduce(jnp.maximum, [score.max(2) for score in scores], own)
    weights = [jnp.exp(score - top[:, :, None]) for score in scores]
    own = jnp.exp(own - top)
    total = own + sum(weight.sum(2) for weight in weights)
    out = product("bgmh,bmgk->bgmhk", own, v)
    for weight, (_, values, _) in zip(weights, past, strict=True):
        out += product("bgcmh,bgck->bgmhk", weight.astype(v.dtype), values)
    out = (out / total[..., None]).astype(v.dtype)
    return jnp.moveaxis(out, 2, 1).reshape(batch, beams, heads * width)
