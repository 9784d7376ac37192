"""Stage 2: K-Means centres of the encoder's layer-L features (audio+video) of a sample of a split.

Runs of frames with the same nearest centre are averaged later on. T frames, D encoder width, K clusters.
"""

import argparse
import contextlib
import itertools
import logging
import os
import tempfile

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from tqdm import tqdm

from viavsp_jax.prepare.features import extract
from viavsp_jax.prepare.features.reading import Reader
from viavsp_jax.prepare.manifest_files import Clip, read_manifest
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.options import MAX_SEED, Renamed, new_file, real, whole

_CHUNK = 4096  # frames measured against all centres at a time

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the stage."""
    extract.add_arguments(parser)
    parser.add_argument(
        "--output", type=new_file("--output"), required=True, help="file for the centres, e.g. kmeans.safetensors"
    )
    parser.add_argument("--split", default="train", help="split to fit on (default train)")
    parser.add_argument(
        "--layer", type=whole("--layer", 1), default=12, help="encoder block, from 1 (default 12, the reference's)"
    )
    parser.add_argument(
        "--num_clusters", type=whole("--num_clusters", 1), default=1000, help="number of clusters (default 1000)"
    )
    parser.add_argument(
        "--fraction",
        "--percent",
        action=Renamed,
        type=real("--fraction", above=0, at_most=1),
        default=1.0,
        help="of the clips, above 0 to 1 (default 1.0: all)",
    )
    parser.add_argument(
        "--seed", type=whole("--seed", 0, MAX_SEED), default=0, help="seed of the sample and of K-Means (default 0)"
    )


def run(args: argparse.Namespace) -> None:
    """Learns and writes the centres. Raises InputError if an input or an option is not usable."""
    clips = _sample(read_manifest(args.manifest, args.split), args.fraction, args.seed)
    encoder = extract.load_encoder(args)
    if not 1 <= args.layer <= encoder.config.num_layers:
        raise InputError(f"--layer is {args.layer}, expected 1 to {encoder.config.num_layers}, as {args.encoder} has.")
    output = epath.Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, not in /tmp: at full size the features take tens of gigabytes.
    place = None if "://" in args.output else output.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=".kmeans.") as scratch:
        features = _collect(encoder, clips, args, os.path.join(scratch, "features.f32"))
        if len(features) < args.num_clusters:
            raise InputError(
                f"{args.manifest}: split {args.split!r} gives {len(features)} frames, expected at least as "
                f"many as --num_clusters {args.num_clusters}."
            )
        centers = fit(features, args.num_clusters, args.seed)
        inertia = mean_inertia(features, centers)
        metadata = {"layer": args.layer, "seed": args.seed, "num_frames": len(features)}
    save_centers(output, centers, metadata)
    log.info("%s: %d centres from %d frames", output, len(centers), metadata["num_frames"])
    log.info("mean inertia per frame: %.4f", inertia)


def _sample(clips: list[Clip], fraction: float, seed: int) -> list[Clip]:
    size = max(1, round(fraction * len(clips)))
    chosen = np.random.default_rng(seed).choice(len(clips), size=size, replace=False)
    return [clips[index] for index in sorted(chosen)]


def _collect(encoder: extract.Encoder, clips: list[Clip], args: argparse.Namespace, path: str) -> np.ndarray:
    """Layer features of all clips, in their order, in a file: float32[T, D].

    Raises InputError if none of the clips is readable.
    """
    starts = [0, *itertools.accumulate(clip.num_frames for clip in clips)]
    shape = (starts[-1], encoder.config.embed_dim)
    with open(path, "wb") as file:  # a full disk is an error here; later, it would be the end of the process
        os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])
    features = np.memmap(path, np.float32, mode="r+", shape=shape)
    written, skipped = np.zeros(len(features), bool), []
    with Reader(args.workers) as reader:
        outputs = extract.encode_clips(encoder, clips, ("av",), args.layer, args.batch_size, reader)
        for index, encoded in tqdm(outputs, total=len(clips), desc="features", unit="clip"):
            if isinstance(encoded, str):
                skipped.append(f"{clips[index].id}: {encoded}")
                continue
            _, modalities = encoded
            # The manifest's length is what there is room for; a clip may decode to a frame more or less.
            found = modalities["av"].layer[: clips[index].num_frames]
            rows = slice(starts[index], starts[index] + len(found))
            features[rows], written[rows] = found, True
    if len(skipped) == len(clips):
        raise InputError(f"{args.manifest}: none of {len(clips)} clips could be read, the first: {skipped[0]}")
    for reason in skipped:
        log.warning("skipped %s", reason)
    log.info("%d clips, %d skipped", len(clips) - len(skipped), len(skipped))
    return features if written.all() else _compact(features, written)


def _compact(features: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Moves the written rows to the front, in chunks: the whole need not fit into memory."""
    end = 0
    for start in range(0, len(features), _CHUNK):
        kept = features[start : start + _CHUNK][written[start : start + _CHUNK]]
        features[end : end + len(kept)] = kept
        end += len(kept)
    return features[:end]


def fit(features: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """float32[T, D] -> centres float32[K, D], by mini-batch K-Means with the reference's settings."""
    # Imported here because the shards stage, which needs the rest of this file, may run where it is not installed.
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(
        num_clusters,
        init="k-means++",
        batch_size=10_000,
        max_iter=100,
        n_init=20,
        tol=0.0,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=seed,
    )
    return kmeans.fit(features).cluster_centers_.astype(np.float32)


def mean_inertia(features: np.ndarray, centers: np.ndarray) -> float:
    """The mean squared distance of float32[T, D] to the nearest of float32[K, D]."""
    total = 0.0
    for start in range(0, len(features), _CHUNK):
        chunk = features[start : start + _CHUNK]
        total += np.square(chunk - centers[assign(chunk, centers)], dtype=np.float64).sum()
    return total / len(features)


def assign(features: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """The nearest centre of each frame: float32[T, D], float32[K, D] -> int64[T].

    |x - c|^2 = |x|^2 - 2 x.c + |c|^2, where |x|^2 is the same for all centres. In float64: the terms are
    thousands of times larger than the differences that decide.
    """
    features, centers = features.astype(np.float64), centers.astype(np.float64)
    return ((centers * centers).sum(1) - 2 * features @ centers.T).argmin(1)


def run_lengths(labels: np.ndarray) -> np.ndarray:
    """The lengths of the runs of equal neighbours: int[T] -> int32[S], which sum to T."""
    ends = np.flatnonzero(np.append(labels[1:] != labels[:-1], True)) + 1 if len(labels) else np.zeros(0, int)
    return np.diff(ends, prepend=0).astype(np.int32)


def save_centers(path: epath.PathLike, centers: np.ndarray, metadata: dict[str, int]) -> None:
    """Writes float32[K, D] as safetensors; `metadata` holds layer, seed and num_frames."""
    text = {name: str(value) for name, value in metadata.items()}
    write_bytes(path, safetensors.numpy.save({"centers": np.ascontiguousarray(centers, np.float32)}, text))


def load_centers(path: str) -> tuple[np.ndarray, int]:
    """Reads (centres float32[K, D], the layer they belong to).

    Raises InputError if the file is missing or is not one that this stage wrote.
    """
    if not epath.Path(path).is_file():
        raise InputError(f"{path}: no such file, expected the centres that the kmeans stage wrote.")
    try:
        with contextlib.ExitStack() as stack:
            remote = "://" in os.fspath(path)
            if remote:  # safetensors opens local files only
                local = epath.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "centers"
                epath.Path(path).copy(local)
            file = stack.enter_context(safetensors.safe_open(local if remote else path, framework="numpy"))
            centers, layer = file.get_tensor("centers"), int((file.metadata() or {})["layer"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a file of the kmeans stage ({type(error).__name__}: {error}).") from error
    if centers.ndim != 2 or centers.dtype != np.float32 or not np.isfinite(centers).all():
        raise InputError(f"{path}: centers are {centers.dtype}{list(centers.shape)}, expected finite float32[K, D].")
    return centers, layer
