"""Feature extraction: our batches with media decoded ahead, against one clip at a time as the reference does it.

    python -m benchmarks.features [--clips 16] [--batch_size 8] [--layers 24] [--rounds 3] [--output FILE.json]

The encoder is AV-HuBERT Large with random weights, float32, on the GPU where there is one; the clips are rendered by
the demo's generator in VASR's length (76 frames). From mp4 and wav to the features of layer 12 and of the last layer,
audio+video. Outputs are compared first.
"""

import argparse
import os
import pathlib
import tempfile

import numpy as np
import torch

from benchmarks.media_clips import write_media
from benchmarks.rounds import Comparison, add_flags, compare, report
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features import extract
from viavsp_jax.prepare.features.avhubert_torch import AVHubert
from viavsp_jax.prepare.features.encoder_torch import TorchEncoder
from viavsp_jax.prepare.features.reading import Reader
from viavsp_jax.prepare.manifest_files import Clip
from viavsp_jax.runtime.errors import reported_to_user

TOLERANCE = 1e-4  # of values near 1


def make_encoder(config: AVHubertConfig) -> AVHubert:
    """The encoder with random weights, on the GPU where there is one."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AVHubert(config).eval()


def encode(model: AVHubert, clips: list[Clip], batch_size: int, workers: int) -> list[np.ndarray]:
    """Last-layer features of all clips, each float32[T, D], on the host."""
    layer = model.config.num_layers // 2
    with Reader(workers) as reader:
        outputs = extract.encode_clips(TorchEncoder(model), clips, ("av",), layer, batch_size, reader)
        features = {index: found["av"].final for index, (_, found) in outputs}
    return [features[index] for index in range(len(clips))]


def run(model: AVHubert, clips: list[Clip], batch_size: int, rounds: int) -> Comparison:
    """Checks that batches change nothing, then times the sides."""
    workers = min(8, os.cpu_count() or 1)  # the default of the shards stage
    sides = {
        f"batches of {batch_size}, {workers} workers": (batch_size, workers),
        f"batches of {batch_size}, no workers": (batch_size, 0),
        "reference's way: clip by clip": (1, 0),
    }
    batched, _, single = (encode(model, clips, *settings) for settings in sides.values())
    for ours, theirs in zip(batched, single, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    title = f"features, AV-HuBERT {model.config.num_layers} layers x {model.config.embed_dim}, {len(clips)} clips"
    calls = {name: lambda settings=settings: len(encode(model, clips, *settings)) for name, settings in sides.items()}
    return compare(calls, rounds, title)


@reported_to_user()
def main(arguments: list[str] | None = None) -> Comparison:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="clips encoded at a time (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=24, help="transformer layers (default: %(default)s)")
    add_flags(parser)
    args = parser.parse_args(arguments)
    model = make_encoder(AVHubertConfig(num_layers=args.layers))
    with tempfile.TemporaryDirectory(prefix="features.") as folder:
        clips = write_media(pathlib.Path(folder) / "media", args.clips)
        comparison = run(model, clips, args.batch_size, args.rounds)
    report([comparison], args.output)
    return comparison


if __name__ == "__main__":
    main()
