"""The encoder of the prepare stages in PyTorch, on one device. B clips of a batch, T frames of the longest."""

from collections.abc import Sequence

import numpy as np
import torch
from etils import epath

from viavsp_jax.data import media
from viavsp_jax.errors import InputError
from viavsp_jax.prepare.avhubert_torch import AVHubert, load_encoder
from viavsp_jax.prepare.reading import Media

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TorchEncoder:
    """Encodes batches on the device and in the dtype of a PyTorch model; an extract.Encoder."""

    def __init__(self, model: AVHubert):
        self.config, self._model = model.config, model
        self._device = next(model.parameters()).device

    @classmethod
    def load(cls, folder: epath.PathLike, dtype: str, device: str | None) -> "TorchEncoder":
        """Of a folder, on a CUDA device where there is one. Raises InputError if it or the device is not usable."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise InputError(f"--device {device} is not usable here ({str(error).splitlines()[0]}).") from error
        return cls(load_encoder(folder, _DTYPES[dtype], device))

    @torch.inference_mode()
    def encode(
        self, items: Sequence[Media | None], lengths: Sequence[int], modalities: Sequence[str], layer: int
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        longest = max(lengths)
        padding_mask = (torch.arange(longest) >= torch.tensor(lengths)[:, None]).to(self._device)
        heard = seen = None
        if {"av", "audio"} & set(modalities):
            audio = torch.zeros(len(items), longest, self.config.audio_dim)
            for row, item in enumerate(items):
                if item is not None:
                    audio[row, : lengths[row]] = torch.from_numpy(item.audio)
            heard = self._model.audio_features(audio.to(self._device))
        if {"av", "video"} & set(modalities):
            video = torch.zeros(len(items), longest, media.CROP_SIZE, media.CROP_SIZE)
            for row, item in enumerate(items):
                if item is not None:
                    video[row, : lengths[row]] = torch.from_numpy(media.video_input(item.frames))
            # A CPU's caches hold the activations of one clip; a GPU is filled by all of them at once.
            together = 1 if self._device.type == "cpu" else len(items)
            seen = torch.cat([self._model.video_features(part) for part in video.to(self._device).split(together)])
        inputs = {"av": (heard, seen), "audio": (heard, None), "video": (None, seen)}
        return {name: self._model.encode(*inputs[name], padding_mask, layer) for name in modalities}

    def to_host(self, array: torch.Tensor) -> np.ndarray:
        return array.float().cpu().numpy()
