"""Attention of packed rows, forward and backward: the kernels that this device has, and the plain way.

    python -m benchmarks.attention [--rows 1] [--output FILE.json]

Rows are those of configs/final.py, packed by the training pipeline; queries, keys and values are normal, of
VinaLLaMA's heads. The plain way scores every position of a row against every other one. All sides are compared with it
in float32: with what they give and with the three gradients, at positions that hold text or speech.

Letters: B rows, S positions, H heads, K head width.
"""

import argparse
import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rounds
from benchmarks.random_model import VINALLAMA, compute_dtype
from benchmarks.vasr_clips import draw_clips, make_prompt, write_shards
from configs import base, final
from viavsp_jax.data import packing, pipeline
from viavsp_jax.models import rope
from viavsp_jax.models.attention import INSTRUCTION, PackedAttention
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import reported_to_user

KERNELS = {"gpu": ["cudnn", "xla"], "tpu": ["tpu", "xla"], "cpu": ["xla"]}
WIDTH, VOCABULARY = 8, 200  # of clips, whose features and labels count for nothing here
# (q, k, v [B, S, H·K], table [B, S, 2·K], segment ids, positions) → [B, S, H·K]
Attention = Callable[..., jax.Array]


def packed_rows(count: int) -> tuple[packing.Arrays, int, int]:
    """The first batch of training, the window, and the length of the instruction."""
    config = base.get_config()
    config.data.update(row=final.get_config().data.row, rows=count, feature_width=WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        config.data.path = folder
        data, prompt = read_settings(config).data, make_prompt(VOCABULARY)
        write_shards(pathlib.Path(folder), {"train": draw_clips(2 * count * data.row.clips, WIDTH, VOCABULARY)})
        batches = pipeline.training_batches(data, prompt)
        batch = next(batches)
        batches.close()
    return batch, data.row.window, max(map(len, prompt.instructions()))


def plain(q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, segment_ids: jax.Array, _: jax.Array):
    """An `Attention`: each utterance sees itself and the instruction, which stands before all of them."""
    q, k, v = (x.reshape(*x.shape[:2], -1, table.shape[-1] // 2) for x in (q, k, v))
    queries, keys = segment_ids[:, :, None], segment_ids[:, None]
    mask = jnp.tril((keys > 0) & ((queries == keys) | (keys == INSTRUCTION) & (queries > 0)))
    out = jax.nn.dot_product_attention(rope.rotate(q, table), rope.rotate(k, table), v, mask=mask[:, None])
    return out.reshape(*segment_ids.shape, -1)


def forward_and_backward(attention: Attention) -> Callable[..., tuple[jax.Array, ...]]:
    """(gradient of the output, the inputs) → output and the gradients of q, k and v; jitted."""

    @jax.jit
    def run(gradient, q, k, v, *others):
        out, back = jax.vjp(lambda *inputs: attention(*inputs, *others), q, k, v)
        return out, *back(gradient)

    return run


def largest_difference(found: tuple[jax.Array, ...], exact: tuple[jax.Array, ...], real: jax.Array) -> str:
    """Of the output and of each gradient, in units of the largest exact value."""
    shares = []
    for ours, theirs in zip(found, exact, strict=True):
        ours, theirs = (np.asarray(x, np.float64).reshape(*real.shape, -1)[real] for x in (ours, theirs))
        shares.append(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return ", ".join(f"{name} {share:.1e}" for name, share in zip(("out", "dq", "dk", "dv"), shares, strict=True))


@reported_to_user()
def main(arguments: Sequence[str] | None = None) -> rounds.Comparison:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.split("\n")[0])
    rounds.add_flags(parser)
    parser.add_argument("--rows", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--heads", type=int, default=VINALLAMA.num_heads, help="default: %(default)s")
    parser.add_argument("--head_width", type=int, default=VINALLAMA.head_dim, help="default: %(default)s")
    parser.add_argument("--calls", type=int, default=20, help="a round (default: %(default)s)")
    args = parser.parse_args(arguments)
    batch, window, instruction = packed_rows(args.rows)
    segment_ids, positions = (jnp.asarray(batch[name]) for name in ("segment_ids", "positions"))
    dtype = compute_dtype()
    table = rope.RopeScaling().table(positions, VINALLAMA.rope_theta, args.head_width, dtype)
    shape = (*segment_ids.shape, args.heads * args.head_width)
    *qkv, gradient = (jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 4))
    real = segment_ids > 0
    # What padding gives means nothing, and no loss depends on it.
    inputs = jnp.where(real[..., None], gradient, 0), *qkv, table, segment_ids, positions
    sides = {kernel: PackedAttention(window, kernel, instruction) for kernel in KERNELS[jax.default_backend()]}
    runs = {name: forward_and_backward(side) for name, side in (sides | {"plain": plain}).items()}

    def calls(run: Callable[..., tuple[jax.Array, ...]]) -> int:
        jax.block_until_ready([run(*inputs) for _ in range(args.calls)])
        return args.calls

    with jax.default_matmul_precision("highest"):
        as_float = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in inputs]
        exact, real = forward_and_backward(plain)(*as_float), np.asarray(real)
    facts = {f"largest_difference,_{name}": largest_difference(run(*inputs), exact, real) for name, run in runs.items()}
    title = f"attention forward and backward, {args.rows} rows, {dtype}"
    comparison = rounds.compare(
        {name: functools.partial(calls, run) for name, run in runs.items()}, args.rounds, title, "calls"
    )
    rounds.report([comparison], args.output, **facts)
    return comparison


if __name__ == "__main__":
    main()
