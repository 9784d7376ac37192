"""Attention within packed rows as a TPU kernel: rotation, scores, softmax and their gradients never leave fast memory.

A tile of queries needs few keys: those of the row's instruction and those that stand in the tile and just before it.
They fit a single block of scores, so that softmax needs no second pass, nothing but the inputs has to be kept for
the backward pass, and all three gradients come out of one pass over the tiles. The keys and values of a whole row and
head lie in fast memory meanwhile.

Letters: B rows, S positions, Q queries of a tile, C keys of a tile, I instruction positions, H query heads, G key/value
heads, K head width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

TILE = 256  # Q
_LANES = 128  # the width of the chip's vectors
_ROWS = 16  # of a vector of bfloat16
_NONE = -1e30  # the score of what is not seen


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the kernel is compiled for."""

    heads: int  # H
    kv_heads: int  # G
    width: int  # K, a multiple of 128
    size: int  # S, a multiple of TILE
    instruction: int  # I, a multiple of 16
    before: int  # keys in front of a tile, a multiple of 16

    @property
    def near(self) -> int:
        """Keys of a tile beside those of the instruction."""
        return min(self.before + TILE, self.size)

    @property
    def group(self) -> int:
        """Query heads on one head of keys."""
        return self.heads // self.kv_heads

    def start(self, tile: jax.Array) -> jax.Array:
        """The first key beside those of the instruction."""
        return pl.multiple_of(jnp.maximum(tile * TILE - (self.near - TILE), 0), _ROWS)


def packed_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array,
    seen: jax.Array,
    *,
    window: int,
    instruction: int,
) -> jax.Array:
    """Attention of queries over what they see of their own row.

    Args:
      q: [B, S, H·K], not rotated yet.
      k, v: [B, S, G·K].
      table: [B, S, 2·K], cosines and signed sines of the rotation, see `RopeScaling.table`.
      seen: int32[B, S, 3], for each query the place of the first key of its own utterance that it sees, and the first
        and the end of those of the instruction, which stands at the row's start. It sees none behind itself.
      window: no query sees a key further back in its own utterance.
      instruction: no instruction is longer.

    Returns:
      [B, S, H·K].
    """
    size, width = q.shape[1], table.shape[2] // 2
    padding = -size % TILE
    q, k, v, table = (jnp.pad(x, [(0, 0), (0, padding), (0, 0)]) for x in (q, k, v, table))
    seen = jnp.pad(seen, [(0, 0), (0, padding), (0, 0)])
    places = -(-instruction // _ROWS) * _ROWS
    # As many more as fill whole vectors with the scores.
    before = -(-(places + window - 1) // _LANES) * _LANES - places
    sizes = Sizes(q.shape[2] // width, k.shape[2] // width, width, size + padding, places, before)
    return _attention(q, k, v, table, seen, sizes)[:, :size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q, k, v, table, seen, sizes: Sizes):
    c = sizes
    return pl.pallas_call(
        functools.partial(_forward, sizes=c),
        grid=(q.shape[0], c.kv_heads, c.size // TILE, c.group),
        in_specs=[_tiles(c), *_rows(c)],
        out_specs=_tiles(c),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_shapes=[pltpu.VMEM((c.size, c.width), k.dtype)],
        compiler_params=_parameters(c),
        name="packed_attention",
    )(q, k, v, table, seen)


def _attention_fwd(q, k, v, table, seen, sizes: Sizes):
    return _attention(q, k, v, table, seen, sizes), (q, k, v, table, seen)


def _attention_bwd(sizes: Sizes, kept, d_out):
    c, (q, k, v, table, seen) = sizes, kept
    whole = pl.BlockSpec((None, c.size, c.width), lambda b, g, i, h: (b, 0, g))
    totals = pltpu.VMEM((c.size, c.width), jnp.float32)
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward, sizes=c),
        grid=(q.shape[0], c.kv_heads, c.size // TILE, c.group),
        in_specs=[_tiles(c), _tiles(c), *_rows(c)],
        out_specs=[_tiles(c), whole, whole],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        scratch_shapes=[pltpu.VMEM((c.size, c.width), k.dtype), totals, totals],
        compiler_params=_parameters(c),
        name="packed_attention_backward",
    )(d_out, q, k, v, table, seen)
    return dq, dk, dv, None, None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _parameters(c: Sizes) -> pltpu.CompilerParams:
    """Tiles and the heads of a group follow each other: they share keys, and add up their gradients."""
    # What a tile takes, and twelve arrays of a row's size in float32. XLA has the rest for itself.
    memory = (4 << 20) + 48 * c.size * c.width
    order = "parallel", "parallel", "arbitrary", "arbitrary"
    return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=memory)


def _tiles(c: Sizes) -> pl.BlockSpec:
    """Of [B, S, H·K], a head's tile."""
    return pl.BlockSpec((None, TILE, c.width), lambda b, g, i, h: (b, i, g * c.group + h))


def _rows(c: Sizes) -> list[pl.BlockSpec]:
    """Of k, v, the table and what is seen, a whole row."""
    head = pl.BlockSpec((None, c.size, c.width), lambda b, g, i, h: (b, 0, g))
    return [
        head, head, pl.BlockSpec((None, c.size, 2 * c.width), lambda b, g, i, h: (b, 0, 0)),
        pl.BlockSpec((None, c.size, 3), lambda b, g, i, h: (b, 0, 0)),
    ]  # fmt: skip


def _forward(q_ref, k_ref, v_ref, table_ref, seen_ref, out_ref, keys_ref, *, sizes: Sizes):
    tile = _begin(k_ref, table_ref, keys_ref)
    _, _, values, weights, share = _softmax(tile, q_ref, v_ref, table_ref, seen_ref, keys_ref, sizes)
    out_ref[...] = (_product(weights.astype(values.dtype), values) * share).astype(out_ref.dtype)


def _backward(
    d_out_ref, q_ref, k_ref, v_ref, table_ref, seen_ref, dq_ref, dk_ref, dv_ref, keys_ref, dk_total, dv_total, *,
    sizes: Sizes,
):  # fmt: skip
    tile = _begin(k_ref, table_ref, keys_ref)
    first = (tile == 0) & (pl.program_id(3) == 0)

    @pl.when(first)
    def _():
        dk_total[...] = jnp.zeros_like(dk_total)
        dv_total[...] = jnp.zeros_like(dv_total)

    q, keys, values, weights, share = _softmax(tile, q_ref, v_ref, table_ref, seen_ref, keys_ref, sizes)
    weights = weights * share
    d_out, scale = d_out_ref[...], sizes.width**-0.5
    d_scores = weights * _product(d_out, values, right=1)
    d_scores = d_scores - weights * jnp.sum(d_scores, -1, keepdims=True)
    d_scores, weights = d_scores.astype(q.dtype), weights.astype(q.dtype)
    cos, sin = _turning(table_ref[pl.ds(tile * TILE, TILE)])
    dq_ref[...] = _turned_back(_product(d_scores, keys) * scale, cos, sin).astype(dq_ref.dtype)
    # `q` is scaled already.
    for total, gradient in ((dk_total, _product(d_scores, q, left=0)), (dv_total, _product(weights, d_out, left=0))):
        if sizes.instruction:
            total[: sizes.instruction] += gradient[: sizes.instruction]
        total[pl.ds(sizes.start(tile), sizes.near)] += gradient[sizes.instruction :]

    @pl.when((tile == pl.num_programs(2) - 1) & (pl.program_id(3) == pl.num_programs(3) - 1))
    def _():
        dk_ref[...] = _turned_back(dk_total[...], *_turning(table_ref[...])).astype(dk_ref.dtype)
        dv_ref[...] = dv_total[...].astype(dv_ref.dtype)


def _begin(k_ref, table_ref, keys_ref) -> jax.Array:
    """The number of the tile; with the first one of a head, its keys are rotated."""
    tile = pl.program_id(2)

    @pl.when((tile == 0) & (pl.program_id(3) == 0))
    def _():
        keys_ref[...] = _turned(k_ref[...], *_turning(table_ref[...])).astype(keys_ref.dtype)

    return tile


def _softmax(tile, q_ref, v_ref, table_ref, seen_ref, keys_ref, sizes: Sizes):
    """Rotated and scaled queries [Q, K]; keys, values [C, K]; weights float32[Q, C]; 1 / their sum, float32[Q, 1]."""
    queries, near = pl.ds(tile * TILE, TILE), pl.ds(sizes.start(tile), sizes.near)
    q = _turned(q_ref[...], *_turning(table_ref[queries]))
    q = (q * sizes.width**-0.5).astype(q_ref.dtype)
    keys, values = (jnp.concatenate([ref[: sizes.instruction], ref[near]]) for ref in (keys_ref, v_ref))
    # Each query sees two stretches of these columns. Of the first one's, its instruction's, there are so many; the
    # others stand for the places from `start` on.
    column = jax.lax.broadcasted_iota(jnp.int32, (TILE, sizes.instruction + sizes.near), 1)
    shift = sizes.instruction - sizes.start(tile)
    own, begin, end = (seen_ref[queries, part : part + 1] for part in range(3))
    here = tile * TILE + jax.lax.broadcasted_iota(jnp.int32, (TILE, 1), 0)
    visible = (column >= jnp.maximum(own + shift, sizes.instruction)) & (column <= here + shift)
    if sizes.instruction:
        visible |= (column >= begin) & (column < end)
    scores = jnp.where(visible, _product(q, keys, right=1), _NONE)
    weights = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
    return q, keys, values, weights, 1 / jnp.sum(weights, -1, keepdims=True)


def _product(x, y, left: int = 1, right: int = 0):
    """float32; sums over these axes."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((left,), (right,)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _turning(table):
    half = table.shape[1] // 2
    return table[:, :half].astype(jnp.float32), table[:, half:].astype(jnp.float32)


def _turned(x, cos, sin):
    """float32[Q, K], rotated."""
    x = x.astype(jnp.float32)
    return x * cos + pltpu.roll(x, x.shape[1] // 2, 1) * sin


def _turned_back(x, cos, sin):
    """The transpose of `_turned`."""
    return x * cos + pltpu.roll(x * sin, x.shape[1] // 2, 1)
