"""The encoder's forward pass: ours in JAX and in PyTorch, batched, against PyTorch one clip at a time.

    python -m benchmarks.encoder [--clips 8] [--batch_size 4] [--layers 24] [--dtype bfloat16] [--rounds 3]

AV-HuBERT Large (325 M parameters) with random weights, audio+video, clips of VASR's length (76 frames) as the encoder
takes them; decoding media is no part of it (see benchmarks.features). JAX and PyTorch run on their GPU where they see
one. Outputs are compared first. A share of peak is that of the rate of large matrix products, measured here as well.
"""

import argparse
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.features import make_encoder
from benchmarks.media_clips import FRAMES
from benchmarks.rounds import Comparison, add_flags, compare, report
from viavsp_jax.aot.workload import encoder_flops
from viavsp_jax.data.features import AUDIO_DIM, FRAME_SIZE
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.avhubert_torch import AVHubert, save_encoder
from viavsp_jax.prepare.features.encoder_jax import JaxEncoder
from viavsp_jax.prepare.features.encoder_torch import TorchEncoder
from viavsp_jax.prepare.features.extract import Encoder
from viavsp_jax.prepare.features.reading import Media
from viavsp_jax.runtime.errors import reported_to_user

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}  # of values up to about 5


def make_clips(count: int) -> list[Media]:
    """Clips of noise."""
    rng = np.random.default_rng(0)
    shape = (FRAMES, FRAME_SIZE, FRAME_SIZE)
    return [
        Media(
            video=b"", frames=rng.integers(0, 256, shape).astype(np.uint8), samples=np.zeros(0, np.int16),
            audio=rng.normal(size=(FRAMES, AUDIO_DIM)).astype(np.float32),
        )
        for _ in range(count)
    ]  # fmt: skip


def encode(encoder: Encoder, clips: list[Media], batch_size: int) -> list[np.ndarray]:
    """Last-layer features of all clips, each float32[T, D]; a batch is under way while the one before is fetched."""
    layer = encoder.config.num_layers // 2
    batches = [clips[start : start + batch_size] for start in range(0, len(clips), batch_size)]
    outputs = [encoder.encode(batch, [FRAMES] * len(batch), ("av",), layer)["av"][1] for batch in batches]
    fetched = [encoder.to_host(output)[: len(batch), :FRAMES] for output, batch in zip(outputs, batches, strict=True)]
    return [features for batch in fetched for features in batch]


def product_rate(multiply: Callable[[], object], size: int) -> float:
    """FLOP/s of the best of five products of square matrices of this size, after a first one."""
    multiply()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def product_rates(dtype: str, size: int) -> dict[str, float]:
    """Of JAX and of PyTorch, on the devices that they encode on."""
    ours = jnp.ones((size, size), dtype)
    theirs = torch.ones(size, size, dtype=getattr(torch, dtype), device="cuda" if torch.cuda.is_available() else "cpu")

    def with_torch():
        return (theirs @ theirs)[0, 0].item()

    multiply = jax.jit(jnp.matmul)
    return {
        "JAX": product_rate(lambda: multiply(ours, ours).block_until_ready(), size),
        "PyTorch": product_rate(with_torch, size),
    }


def run(model: AVHubert, clips: list[Media], batch_size: int, dtype: str, rounds: int) -> Comparison:
    """Checks that all sides give the same, then times them."""
    with tempfile.TemporaryDirectory(prefix="encoder.") as folder:
        save_encoder(model, folder)
        in_jax = JaxEncoder(pathlib.Path(folder), dtype, batch_size)
    in_torch = TorchEncoder(model.to(getattr(torch, dtype)))
    sides = {
        f"JAX, batches of {batch_size}": (in_jax, batch_size),
        f"PyTorch, batches of {batch_size}": (in_torch, batch_size),
        "PyTorch, clip by clip": (in_torch, 1),
    }
    found = [encode(encoder, clips, size) for encoder, size in sides.values()]
    for others in found[1:]:
        for ours, theirs in zip(found[0], others, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE[dtype])
    title = f"encoder, {model.config.num_layers} layers x {model.config.embed_dim}, {len(clips)} clips, {dtype}"
    calls = {
        name: functools.partial(lambda encoder, size: len(encode(encoder, clips, size)), *settings)
        for name, settings in sides.items()
    }
    return compare(calls, rounds, title)


@reported_to_user()
def main(arguments: list[str] | None = None) -> Comparison:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="clips encoded at a time (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=24, help="transformer layers (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="of them, of 64 for each head (default: %(default)s)")
    parser.add_argument("--products", type=int, default=4096, help="size of the matrices (default: %(default)s)")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="(default: %(default)s)")
    add_flags(parser)
    args = parser.parse_args(arguments)
    sizes = {"embed_dim": args.width, "num_heads": args.width // 64, "ffn_dim": 4 * args.width}
    model = make_encoder(AVHubertConfig(num_layers=args.layers, **sizes))
    comparison = run(model, make_clips(args.clips), args.batch_size, args.dtype, args.rounds)
    work, peaks = encoder_flops(model.config, FRAMES), product_rates(args.dtype, args.products)
    shares = {
        name: f"{np.median(rates) * work / peaks[name.split(',')[0]]:.1%}" for name, rates in comparison.rates.items()
    }
    report(
        [comparison], args.output, operations_of_a_clip=f"{work / 1e9:.0f} GFLOP",
        large_products=", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in peaks.items()),
        share_of_that_rate=", ".join(f"{name}: {share}" for name, share in shares.items()),
    )  # fmt: skip
    return comparison


if __name__ == "__main__":
    main()
