"""Attention in packed rows, within each utterance and to the row's instruction, by the fastest kernel of each platform.

Letters: B rows, S positions, P longest instruction, W window, Q queries, C keys, H query heads, G key/value heads,
K head width.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import NamedSharding

# splash: Pallas kernel of TPUs. cudnn: flash attention of NVIDIA GPUs. xla: everywhere.
Kernel = Literal["splash", "cudnn", "xla"]

INSTRUCTION = 1  # segment id of what all utterances of a row, 2, 3, …, have before them; 0 is padding

_BLOCK = 64  # queries that XLA's attention works on at a time
_TILE = 256  # queries and keys that the TPU kernel works on at a time


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


@dataclasses.dataclass(frozen=True)
class PackedAttention:
    """Causal attention of each utterance of packed rows to itself and to the instruction that a row begins with.

    No utterance is longer than `window` positions, its instruction included, so that cost grows with S·(W + P) instead
    of S². The result for padding is finite and means nothing.
    """

    window: int | None = None  # None: none is longer than its row
    kernel: Kernel = "xla"
    instruction: int = 0  # P; 0: rows hold none that is shared
    # Of [B, S, H, K], for the TPU kernel, which XLA cannot cut by itself.
    sharding: NamedSharding | None = None

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        seen: jax.Array | None = None,
    ) -> jax.Array:
        """q [B, S, H, K], k and v [B, S, G, K], segment_ids and positions int32[B, S] → [B, S, H·K].

        `seen`: how many positions a token sees, int32, its own included; None: all of its utterance before it.
        """
        if self.kernel == "splash" and seen is None and not self.instruction:
            out = self._tiled(q, k, v, segment_ids)
        else:
            out = self._in_blocks(q, k, v, segment_ids, positions, seen)
        return out.reshape(*q.shape[:2], -1)

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
        kernel = "xla" if self.kernel == "splash" else self.kernel
        out = jax.nn.dot_product_attention(blocks(q), k, v, mask=mask[:, None], implementation=kernel)
        return out.reshape(batch, padded, *q.shape[2:])[:, :size]

    def _tiled(self, q, k, v, segment_ids):
        """The TPU kernel, in which tiles outside the window cost nothing."""
        size, width = q.shape[1], q.shape[-1]
        padding = -size % _TILE

        def attention(q, k, v, segment_ids):
            q, k, v = (jnp.pad(x.swapaxes(1, 2), [(0, 0), (0, 0), (0, padding), (0, 0)]) for x in (q, k, v))
            segment_ids = jnp.pad(segment_ids, [(0, 0), (0, padding)])
            window = splash.LocalMask((size + padding,) * 2, ((self.window or size) - 1, 0), 0)
            mask = splash.MultiHeadMask([window] * q.shape[1])
            tiles = dict.fromkeys(
                ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
                 "block_q_dq", "block_kv_dq"), _TILE
            )  # fmt: skip
            kernel = splash.make_splash_mha_single_device(
                mask, block_sizes=splash.BlockSizes(**tiles), residual_checkpoint_name="attention"
            )
            out = jax.vmap(kernel)(q * width**-0.5, k, v, splash.SegmentIds(segment_ids, segment_ids))
            return out[:, :, :size].swapaxes(1, 2)

        if self.sharding is None:
            return attention(q, k, v, segment_ids)
        spec = self.sharding.spec
        return jax.shard_map(
            attention,
            mesh=self.sharding.mesh,
            in_specs=(spec, spec, spec, jax.sharding.PartitionSpec(spec[0])),
            out_specs=spec,
            check_vma=False,
        )(q, k, v, segment_ids)


WHOLE_ROWS = PackedAttention()
