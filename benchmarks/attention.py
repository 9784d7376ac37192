"""Attention of packed rows, forward and backward: the kernels that this device has, and the plain way.

    python -m benchmarks.attention [--rows 1] [--output FILE.json]

Rows are those of configs/final.py, packed by the training pipeline; queries, keys and values are normal, of
VinaLLaMA's heads. The plain way scores every position of a row against every other one. All sides are compared with it
in float32: with what they give and with the three gradients, at positions that hold a clip.
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
from viavsp_jax.data import pipeline
from viavsp_jax.experiment import read_settings
from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.runtime.errors import reported_to_user

KERNELS = {"gpu": ["cudnn", "xla"], "tpu": ["splash", "xla"], "cpu": ["xla"]}
WIDTH, VOCABULARY = 8, 200  # of clips, whose features and labels count for nothing here
Run = Callable[..., tuple[jax.Array, ...]]


def packed_rows(count: int) -> tuple[jax.Array, int]:
    """Segment ids int32[B, S] of the first batch of training, and the window."""
    config = base.get_config()
    config.data.update(row=final.get_config().data.row, rows=count, feature_width=WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        config.data.path = folder
        data = read_settings(config).data
        write_shards(pathlib.Path(folder), {"train": draw_clips(2 * count * data.row.clips, WIDTH, VOCABULARY)})
        batches = pipeline.training_batches(data, make_prompt(VOCABULARY))
        segment_ids = next(batches)["segment_ids"]
        batches.close()
    return jnp.asarray(segment_ids), data.row.window


def forward_and_backward(attention: PackedAttention) -> Run:
    """(q, k, v, segment ids, gradient of the output) → output and the gradients of q, k and v; jitted."""

    @jax.jit
    def run(q, k, v, segment_ids, gradient):
        out, back = jax.vjp(lambda *inputs: attention(*inputs, segment_ids), q, k, v)
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
    segment_ids, window = packed_rows(args.rows)
    shape = (*segment_ids.shape, args.heads, args.head_width)
    drawn = [jax.random.normal(key, shape, compute_dtype()) for key in jax.random.split(jax.random.key(0), 4)]
    # What padding gives means nothing, and no loss depends on it.
    gradient = jnp.where((segment_ids > 0)[..., None], drawn[3].reshape(*segment_ids.shape, -1), 0)
    inputs = *drawn[:3], segment_ids, gradient
    sides = {kernel: PackedAttention(window, kernel) for kernel in KERNELS[jax.default_backend()]}
    runs = {name: forward_and_backward(side) for name, side in (sides | {"plain": PackedAttention()}).items()}

    def calls(run: Run) -> int:
        jax.block_until_ready([run(*inputs) for _ in range(args.calls)])
        return args.calls

    with jax.default_matmul_precision("highest"):
        as_float = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in inputs]
        exact = forward_and_backward(PackedAttention())(*as_float)
    real = np.asarray(segment_ids > 0)
    facts = {f"largest_difference,_{name}": largest_difference(run(*inputs), exact, real) for name, run in runs.items()}
    title = f"attention forward and backward, {args.rows} rows, {compute_dtype()}"
    comparison = rounds.compare(
        {name: functools.partial(calls, run) for name, run in runs.items()}, args.rounds, title, "calls"
    )
    rounds.report([comparison], args.output, **facts)
    return comparison


if __name__ == "__main__":
    main()
