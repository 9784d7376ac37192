"""Clips in, encoder outputs out, in batches of similar length, by PyTorch or by JAX.

B clips of a batch, T frames of the longest, D encoder width.
"""

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.reading import UNCHANGED, Changes, Media, Reader
from viavsp_jax.prepare.manifest_files import Clip
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.options import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every stage that runs the encoder."""
    parser.add_argument("--manifest", required=True, help="folder with {split}.tsv and {split}.wrd")
    parser.add_argument("--encoder", required=True, help="AV-HuBERT folder: config.json and model.safetensors")
    parser.add_argument(
        "--backend",
        choices=["torch", "jax"],
        default="torch",
        help="torch: one device; jax: all devices of this machine, also TPUs, without PyTorch (default torch)",
    )
    parser.add_argument(
        "--batch_size", type=whole("--batch_size", 1), default=8, help="clips encoded at a time (default 8)"
    )
    parser.add_argument("--device", help="with torch: cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="number format of the encoder (default float32; float16 with torch only)",
    )
    parser.add_argument(
        "--workers",
        type=whole("--workers", 0),
        default=min(8, os.cpu_count() or 1),
        help="processes that decode media; 0: none",
    )


class Encoder(Protocol):
    """What a backend offers."""

    config: AVHubertConfig

    def encode(
        self, items: Sequence[Media | None], lengths: Sequence[int], modalities: Sequence[str], layer: int | None
    ) -> dict[str, tuple[Any, Any]]:
        """Encodes a batch: each clip goes once through the frontends, then once for each modality.

        Args:
          items: the clips; None is taken as zeros.
          lengths: their frames.
          modalities: some of examples.MODALITIES.
          layer: the block whose raw output is wanted besides the last, counted from 1; None: no other.

        Returns {modality: (output of the layer or None, of the last one, normed)}, arrays of the backend, [B, T, D] or
        padded to more. They may still be computed when they are returned.
        """

    def to_host(self, array: Any) -> np.ndarray:
        """An array of the backend as float32."""


def load_encoder(args: argparse.Namespace) -> Encoder:
    """The encoder that the options ask for. Raises InputError if it or the device is not usable."""
    # Imported here because a machine may have only one of them.
    if args.backend == "jax":
        from viavsp_jax.prepare.features.encoder_jax import JaxEncoder

        if args.device:
            raise InputError(f"--device {args.device} goes with --backend torch, jax takes all devices there are.")
        return JaxEncoder(args.encoder, args.dtype, args.batch_size)
    from viavsp_jax.prepare.features.encoder_torch import TorchEncoder

    return TorchEncoder.load(args.encoder, args.dtype, args.device)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One clip in one modality: raw output of the wanted layer, and the last layer, normed; both float32[T, D]."""

    layer: np.ndarray | None  # None where none is wanted
    final: np.ndarray


# Index of the clip, and its media with {modality: outputs} or, if it cannot be read, the reason.
EncodedClip = tuple[int, tuple[Media, dict[str, Encoded]] | str]


def encode_clips(
    encoder: Encoder,
    clips: Sequence[Clip],
    modalities: Sequence[str],
    layer: int | None,
    batch_size: int,
    reader: Reader,
    changes: Changes = UNCHANGED,
) -> Iterator[EncodedClip]:
    """Encodes clips, the longest first (see `Encoder.encode`); while one batch is used, the next is computed."""
    order = sorted(range(len(clips)), key=lambda index: -clips[index].num_frames)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    read = reader.read(([clips[index] for index in batch] for batch in batches), changes, encoder.config.waveform)
    before = None
    for batch, items in zip(batches, read, strict=True):
        # A clip that cannot be read keeps its place, as zeros, so that the others are computed in the same
        # shapes and give the same bits as if it could.
        known = [None if isinstance(item, str) else item for item in items]
        lengths = [
            len(item.frames) if item else clips[index].num_frames for index, item in zip(batch, known, strict=True)
        ]
        outputs = encoder.encode(known, lengths, modalities, layer)
        if before:
            yield from _each_clip(encoder, *before)
        before = batch, items, outputs
    if before:
        yield from _each_clip(encoder, *before)


def _each_clip(
    encoder: Encoder, batch: Sequence[int], items: Sequence[Media | str], outputs: dict[str, tuple[Any, Any]]
) -> Iterator[EncodedClip]:
    arrays = {
        name: [None if array is None else encoder.to_host(array) for array in both] for name, both in outputs.items()
    }
    for row, (index, item) in enumerate(zip(batch, items, strict=True)):
        if isinstance(item, str):
            yield index, item
            continue
        length = len(item.frames)
        own = {
            name: Encoded(*(None if one is None else one[row, :length] for one in both))
            for name, both in arrays.items()
        }
        yield index, (item, own)
