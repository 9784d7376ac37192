"""The encoder of the prepare stages in PyTorch, on one device."""

from collections.abc import Sequence

import numpy as np
import torch
from etils import epath

from viavsp_jax.data.features import video_input
from viavsp_jax.prepare.features.avhubert_torch import AVHubert, load_encoder
from viavsp_jax.prepare.features.reading import Media
from viavsp_jax.runtime.errors import InputError


class TorchEncoder:
    """Encodes batches on the device and in the dtype of a PyTorch model; an extract.Encoder."""

    def __init__(self, model: AVHubert):
        self.config, self._model = model.config, model

    @classmethod
    def load(cls, folder: epath.PathLike, dtype: str, device: str | None) -> "TorchEncoder":
        """Of a folder, on a CUDA device where there is one. Raises InputError if it or the device is not usable."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise InputError(f"--device {device} is not usable here ({str(error).splitlines()[0]}).") from error
        return cls(load_encoder(folder, getattr(torch, dtype), device))

    def encode(
        self, items: Sequence[Media | None], lengths: Sequence[int], modalities: Sequence[str], layer: int | None
    ) -> dict[str, tuple[torch.Tensor | None, torch.Tensor]]:
        heard, pictures = [item and item.audio for item in items], None
        if {"av", "video"} & set(modalities):
            pictures = [item and video_input(item.frames) for item in items]
        seen = [None if item is None else item.seen for item in items]
        all_seen = all(one is None for one in seen)
        seen = None if all_seen else [np.ones(t, bool) if x is None else x for x, t in zip(seen, lengths, strict=True)]
        return self._model.encode_clips(heard, pictures, lengths, modalities, layer, seen)

    def to_host(self, array: torch.Tensor) -> np.ndarray:
        return array.float().cpu().numpy()
