"""Segment means of packed rows: one jitted call against the reference's way and against vectorised PyTorch.

    python -m benchmarks.dedup [--rows 8] [--rounds 3] [--output FILE.json]

All sides average the same float32 frames, 1024 wide, of clips of 76 frames with real run lengths, on the accelerator
where there is one. The reference goes through a clip segment by segment in Python. Results are compared first.

Letters: B rows, T frames, S row positions, E encoder width.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from benchmarks.rounds import Comparison, add_flags, compare, report
from benchmarks.vasr_clips import FRAMES, draw_run_lengths
from viavsp_jax.models.dedup import segment_mean
from viavsp_jax.runtime.errors import reported_to_user

TEXT_POSITIONS = 35  # of a clip: instruction and label
TOLERANCE = 1e-6  # of sums of a few numbers near 1, in float32


def pack(run_lengths: list[np.ndarray], rows: int, frames: int, positions: int) -> tuple[list[list[int]], np.ndarray]:
    """The run lengths that rows have room for, clip by clip, and their slots int32[B, T]."""
    waiting, packed = iter(run_lengths), []
    slots = np.full((rows, frames), positions, np.int32)
    for row in slots:
        frame = position = 0
        while frame + FRAMES <= frames and position + TEXT_POSITIONS + FRAMES <= positions:
            runs = next(waiting)
            position += TEXT_POSITIONS
            row[frame : frame + FRAMES] = np.repeat(position + np.arange(len(runs)), runs)
            frame, position = frame + FRAMES, position + len(runs)
            packed.append(runs.tolist())
    return packed, slots


def reference_means(clips: list[tuple[Tensor, list[int]]]) -> list[Tensor]:
    """Clip by clip, segment by segment: features [t, E] and run lengths → [s, E]."""
    result = []
    for features, runs in clips:
        means, start = [], 0
        for length in runs:
            means.append(features[start : start + length].mean(0))
            start += length
        result.append(torch.stack(means))
    return result


def index_add_means(features: Tensor, slots: Tensor, num_slots: int) -> Tensor:
    """As `segment_mean`, by one scatter-add over all rows: [B, T, E], int64[B, T] → [B, S, E]."""
    rows, _, width = features.shape
    places = rows * (num_slots + 1)  # one more in each row, for padding
    flat = (slots + torch.arange(rows, device=slots.device)[:, None] * (num_slots + 1)).flatten()
    sums = torch.zeros(places, width, device=features.device).index_add_(0, flat, features.flatten(0, 1))
    counts = torch.bincount(flat, minlength=places).clamp(min=1)
    return (sums / counts[:, None]).unflatten(0, (rows, num_slots + 1))[:, :num_slots]


def torch_sides(
    features: np.ndarray, slots: np.ndarray, packed: list[list[int]], num_slots: int
) -> dict[str, Callable[[], list[Tensor] | Tensor]]:
    """The two PyTorch sides, with their inputs in place."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames, places = torch.from_numpy(features).to(device), torch.from_numpy(slots).long().to(device)
    # The frames of a row's clips lie back to back; the last ones of a row are padding.
    real = frames[places < num_slots].split([sum(runs) for runs in packed])
    clips = list(zip(real, packed, strict=True))

    def synchronized(result):
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    return {
        "reference: Python loop": lambda: synchronized(reference_means(clips)),
        "PyTorch index_add": lambda: synchronized(index_add_means(frames, places, num_slots)),
    }


def run(rows: int, frames: int, positions: int, width: int, rounds: int) -> Comparison:
    """Checks that all sides give the same means, then times them."""
    rng = np.random.default_rng(0)
    packed, slots = pack(draw_run_lengths(rng, rows * frames // FRAMES), rows, frames, positions)
    features = rng.standard_normal((rows, frames, width), np.float32)
    mean = jax.jit(segment_mean, static_argnums=2)
    inputs = jnp.asarray(features), jnp.asarray(slots)
    others = torch_sides(features, slots, packed, positions)
    sides = {"segment_mean, jitted": lambda: jax.block_until_ready(mean(*inputs, positions)), **others}

    ours, loop, index_add = (side() for side in sides.values())
    ours, loop, index_add = np.asarray(ours), torch.cat(loop).cpu().numpy(), index_add.cpu().numpy()
    used = np.zeros((rows, positions + 1), bool)
    np.put_along_axis(used, slots, True, 1)
    np.testing.assert_allclose(ours[used[:, :positions]], loop, atol=TOLERANCE)
    np.testing.assert_allclose(ours, index_add, atol=TOLERANCE)

    def counted(side):
        side()
        return len(packed)

    title = f"dedup of {rows} rows x {frames} frames x {width}, float32, {len(packed)} clips, {len(loop)} segments"
    return compare({name: lambda side=side: counted(side) for name, side in sides.items()}, rounds, title)


@reported_to_user()
def main(arguments: list[str] | None = None) -> Comparison:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dedup", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--frames", type=int, default=2048, help="frames of a row (default: %(default)s)")
    parser.add_argument("--positions", type=int, default=2048, help="positions of a row (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="features of a frame (default: %(default)s)")
    add_flags(parser)
    args = parser.parse_args(arguments)
    comparison = run(args.rows, args.frames, args.positions, args.width, args.rounds)
    report([comparison], args.output)
    return comparison


if __name__ == "__main__":
    main()
