"""The encoder of the prepare stages in JAX, on all devices of this process; needs no PyTorch.

B clips of a batch, T frames, D encoder width.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from convert.avhubert import load_flax
from viavsp_jax.data.features import CROP_SIZE, center_crop
from viavsp_jax.models.avhubert.encoder import AVHubert, normalized
from viavsp_jax.prepare.features.reading import Media
from viavsp_jax.rules import DTYPES
from viavsp_jax.runtime import programs
from viavsp_jax.runtime.errors import InputError


class JaxEncoder:
    """Encodes batches of which each device has as many clips; an extract.Encoder."""

    def __init__(self, folder: epath.PathLike, dtype: str, batch_size: int, least_frames: int = 1):
        """Of a folder, for batches of at most `batch_size` clips, padded to `least_frames` if they are shorter.

        Raises InputError if the folder or the dtype is not usable.
        """
        if dtype not in DTYPES:
            raise InputError(f"--dtype is {dtype}, expected one of {', '.join(DTYPES)} with --backend jax.")
        self.config, weights = load_flax(folder, fold=True)
        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("clips",), axis_types=(AxisType.Auto,), devices=devices)
        self._least_frames = least_frames
        self._rows = -(-batch_size // len(devices)) * len(devices)
        self._by_clip = NamedSharding(mesh, PartitionSpec("clips"))
        # What products and convolutions read, which the program would round in every batch otherwise: on a TPU a
        # quarter of its time.
        weights = jax.tree_util.tree_map_with_path(
            lambda path, x: x.astype(dtype) if path[-1].key == "kernel" else x, weights
        )
        self._weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
        # A TPU would multiply float32 in bfloat16.
        self._precision = "highest" if dtype == "float32" else "default"
        settings = {"dtype": jnp.dtype(dtype), "fold": True}
        graph = nnx.graphdef(nnx.eval_shape(lambda: AVHubert(self.config, rngs=nnx.Rngs(0), **settings)))
        forward = functools.partial(_forward, graph)
        self._forward = programs.jit(mesh, forward, static_argnames=("modalities", "layer"))

    def encode(
        self, items: Sequence[Media | None], lengths: Sequence[int], modalities: Sequence[str], layer: int | None
    ) -> dict[str, tuple[jax.Array | None, jax.Array]]:
        frames = padded_length(max(self._least_frames, *lengths))
        # Rows that fill up the batch are of full length: what they hold is of no use, but has to be numbers.
        batch = {"lengths": np.full(self._rows, frames, np.int32)}
        batch["lengths"][: len(lengths)] = lengths
        if {"av", "audio"} & set(modalities):
            batch["audio"] = np.zeros((self._rows, frames, self.config.audio_dim), np.float32)
        if {"av", "video"} & set(modalities):
            batch["video"] = np.zeros((self._rows, frames, CROP_SIZE, CROP_SIZE), np.uint8)
            batch["seen"] = np.ones((self._rows, frames), bool)
        for row, item in enumerate(items):
            if item is not None and "audio" in batch:
                batch["audio"][row, : len(item.audio)] = item.audio
            if item is not None and "video" in batch:
                batch["video"][row, : len(item.frames)] = center_crop(item.frames)
                if item.seen is not None:
                    batch["seen"][row, : len(item.seen)] = item.seen
        with jax.default_matmul_precision(self._precision):
            placed = jax.device_put(batch, self._by_clip)
            return self._forward(self._weights, placed, modalities=tuple(modalities), layer=layer)

    def to_host(self, array: jax.Array) -> np.ndarray:
        return np.asarray(array).astype(np.float32)


def padded_length(frames: int) -> int:
    """One of 16 lengths in each doubling, at most a 16th longer: every length is one more program to compile.

    VASR's clips, all of 76 frames, stay as they are.
    """
    step = 1 << max(0, frames.bit_length() - 5)
    return -(-frames // step) * step


def _forward(
    graph: nnx.GraphDef, weights: dict, batch: dict[str, jax.Array], modalities: Sequence[str], layer: int | None
) -> dict[str, tuple[jax.Array | None, jax.Array]]:
    """{modality: (output of the layer, of the last one)}, each [B, T, D].

    The batch holds lengths [B] and audio, or video and bool[B, T] seen, or all of them.
    """
    model, heard, seen = nnx.merge(graph, weights), None, None
    num_frames = batch.get("audio", batch.get("video")).shape[1]
    padding_mask = jnp.arange(num_frames)[None] >= batch["lengths"][:, None]
    if "audio" in batch:
        heard = model.audio_features(batch["audio"])
    if "video" in batch:
        # Normalised here: pixels are four times less to send.
        seen = model.video_features(normalized(batch["video"], padding_mask), batch["seen"])
    inputs = {"av": (heard, seen), "audio": (heard, None), "video": (None, seen)}
    return {name: model.encode(*inputs[name], padding_mask, layer) for name in modalities}
