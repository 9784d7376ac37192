"""Attention in packed rows, within each utterance and to the row's instruction, by the fastest kernel of each platform.

Letters: B rows, S positions, P longest instruction, W window, Q queries, C keys, H query heads, G key/value heads,
K head width.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from viavsp_jax.models import attention_tpu
from viavsp_jax.models.rope import rotate

# tpu: ours, in attention_tpu.py. cudnn: flash attention of NVIDIA GPUs. xla: everywhere.
Kernel = Literal["tpu", "cudnn", "xla"]

INSTRUCTION = 1  # segment id of what all utterances of a row, 2, 3, …, have before them; 0 is padding

_BLOCK = 64  # queries that XLA's attention works on at a time


def causal_mask(query_ids: jax.Array, key_ids: jax.Array, seen: jax.Array | None = None) -> jax.Array:
    """Who sees whom of one segment: int32[B, Q] and int32[B, C] segment ids (0 = padding) → bool[B, Q, C].

    Queries are the last Q of the C positions; each sees `seen` of them, its own included, or all. For segment ids
    1 1 2 0 of both, query down, key across:
        1 . . .
        1 1 . .
        . . 1 .
        . . . .
    """
    same = (query_ids[:, :, None] == key_ids[:, None, :]) & (key_ids[:, None, :] > 0)
    before = key_ids.shape[1] - query_ids.shape[1]
    mask = jnp.tril(same, before)
    if seen is None:
        return mask
    queries, keys = jnp.arange(query_ids.shape[1])[:, None] + before, jnp.arange(key_ids.shape[1])[None]
    return mask & (queries - keys < seen)[None]


def instruction_mask(
    query_ids: jax.Array, query_positions: jax.Array, key_ids: jax.Array, seen: jax.Array | None = None
) -> jax.Array:
    """Which utterances see the instruction of their row, whose keys are its first C: → bool[B, Q, C].

    `query_ids`, `query_positions` int32[B, Q], `key_ids` int32[B, C], `seen` as for `causal_mask`: it counts positions
    of the utterance, which stands behind the instruction wherever it is in the row. For segment ids 1 1 2 3 0 of
    queries, C = 3:
        . . .
        . . .
        1 1 .
        1 1 .
        . . .
    """
    mask = (query_ids > INSTRUCTION)[:, :, None] & (key_ids == INSTRUCTION)[:, None]
    if seen is None:
        return mask
    return mask & (query_positions[:, :, None] - jnp.arange(key_ids.shape[1])[None, None] < seen)


def stretches(segment_ids: jax.Array, positions: jax.Array, shared: bool, seen: jax.Array | None = None) -> jax.Array:
    """What each query sees, as the TPU kernel wants it, see `attention_tpu.packed_attention`: → int32[B, S, 3].

    `shared`: whether the row begins with an instruction for all utterances.
    """
    place = jnp.arange(segment_ids.shape[1])[None]
    first = segment_ids != jnp.pad(segment_ids, [(0, 0), (1, 0)], constant_values=-1)[:, :-1]
    own = jax.lax.cummax(jnp.where(first, place, 0), axis=1)
    length = jnp.sum(segment_ids == INSTRUCTION, 1, keepdims=True)
    end = jnp.where(shared & (segment_ids > INSTRUCTION), length, 0)  # of the instruction, for those that see it
    begin = jnp.zeros_like(end)
    if seen is not None:
        own, begin = jnp.maximum(own, place - seen + 1), jnp.maximum(begin, positions - seen + 1)
    return jnp.stack([own, begin, end], -1).astype(jnp.int32)


def heads(x: jax.Array, table: jax.Array) -> jax.Array:
    """[B, S, H·K] → [B, S, H, K], by the table [B, S, 2·K]."""
    return x.reshape(*x.shape[:2], -1, table.shape[-1] // 2)


@dataclasses.dataclass(frozen=True)
class PackedAttention:
    """Causal attention of each utterance of packed rows to itself and to the instruction that a row begins with.

    No utterance is longer than `window` positions, its instruction included, so that cost grows with S·(W + P) instead
    of S². The result for padding is finite and means nothing.
    """

    window: int | None = None  # None: none is longer than its row
    kernel: Kernel = "xla"
    instruction: int = 0  # P; 0: rows hold none that is shared
    # Of [B, S, H·K], for the TPU kernel, which XLA cannot cut by itself.
    sharding: NamedSharding | None = None

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        table: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        seen: jax.Array | None = None,
    ) -> jax.Array:
        """Rotates queries and keys and attends: q [B, S, H·K], k and v [B, S, G·K] → [B, S, H·K].

        `table`, [B, S, 2·K], is a `RopeScaling.table`; segment_ids, positions int32[B, S]. `seen`: how many positions a
        token sees, int32, its own included; None: all of its utterance before it.
        """
        if self.kernel == "tpu":
            return self._in_tiles(q, k, v, table, segment_ids, positions, seen)
        q, k, v = (heads(x, table) for x in (q, k, v))
        return self._in_blocks(rotate(q, table), rotate(k, table), v, segment_ids, positions, seen)

    def _in_blocks(self, q, k, v, segment_ids, positions, seen):
        """Blocks of Q queries, each with the keys of its own block and of those before that reach W positions back.

        Before these come the row's first P keys, of which utterances see those of the instruction; the instruction
        itself sees its keys in its own block, like any segment.
        """
        batch, size = segment_ids.shape
        window = min(self.window or size, size)
        block = window if self.kernel == "cudnn" else min(window, _BLOCK)
        padded = -(-size // block) * block
        before = min(-(-(window - 1) // block), padded // block - 1)

        def blocks(x, shift=0):
            """[B, S, ...] → [B·S/Q, Q, ...], `shift` blocks earlier."""
            widths = [(0, 0), (shift * block, padded - size)] + [(0, 0)] * (x.ndim - 2)
            return jnp.pad(x, widths)[:, :padded].reshape(-1, block, *x.shape[2:])

        def with_previous(x):
            """[B, S, ...] → [B·S/Q, C, ...]"""
            return jnp.concatenate([blocks(x, shift) for shift in range(before, -1, -1)], 1)

        mask = causal_mask(blocks(segment_ids), with_previous(segment_ids), seen)
        first = min(-(-self.instruction // 8) * 8, size)  # even: cuDNN takes no odd number of keys

        def with_first(x):
            """[B, S, ...] → [B·S/Q, P + C, ...]"""
            return jnp.concatenate([jnp.repeat(x[:, :first], padded // block, 0), with_previous(x)], 1)

        if first:
            ids = jnp.repeat(segment_ids[:, :first], padded // block, 0)
            shared = instruction_mask(blocks(segment_ids), blocks(positions), ids, seen)
            mask = jnp.concatenate([shared, mask], -1)
            k, v = with_first(k), with_first(v)
        else:
            k, v = with_previous(k), with_previous(v)
        out = jax.nn.dot_product_attention(blocks(q), k, v, mask=mask[:, None], implementation=self.kernel)
        return out.reshape(batch, padded, -1)[:, :size]

    def _in_tiles(self, q, k, v, table, segment_ids, positions, seen):
        """The TPU kernel, on each device's own rows and heads."""

        def attention(q, k, v, table, visible):
            return attention_tpu.packed_attention(
                q, k, v, table, visible, window=min(self.window or size, size), instruction=self.instruction
            )

        size, visible = q.shape[1], stretches(segment_ids, positions, self.instruction > 0, seen)
        if self.sharding is None:
            return attention(q, k, v, table, visible)
        spec = self.sharding.spec
        by_row = jax.sharding.PartitionSpec(spec[0])
        return jax.shard_map(
            attention, mesh=self.sharding.mesh, in_specs=(spec, spec, spec, by_row, by_row), out_specs=spec,
            check_vma=False,
        )(q, k, v, table, visible)  # fmt: skip


WHOLE_ROWS = PackedAttention()
