"""An exported model, by PyTorch: on a GPU where there is one."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from etils import epath
from torch import Tensor

from convert.decode_hf import ExportError, load_model, read_config
from viavsp_jax.app.recognizer import Hypothesis, Recognition, Utterance, Word
from viavsp_jax.data import lost
from viavsp_jax.data.compression import Compression
from viavsp_jax.runtime.errors import InputError


class TorchRecognizer:
    """A recognizer.Recognizer of a folder that convert.to_hf wrote; runs no code that lies there."""

    def __init__(
        self,
        folder: str,
        llm: str | None,
        device: str | None,
        dtype: str | None = None,
        compression: str | None = None,
    ):
        """Loads an export; the rest is as in Transcriber.from_pretrained.

        Raises InputError if the export is not usable.
        """
        config = read_config(folder)
        try:
            way = Compression.of(compression or config.compression)
        except ValueError as error:
            raise InputError(str(error)) from None
        if not config.encoder or (way.by_clusters and not config.cluster_layer):
            raise InputError(
                f"{folder} was exported without encoder and clusters, so it takes no media"
                f"{f' by compression {compression}' if compression else ''}: export it again with --encoder and "
                "--kmeans"
            )
        self._compression = str(way)
        device = device or default_device()
        merged = llm is None and (pathlib.Path(folder) / "merged").exists()
        try:
            self._model = load_model(folder, llm, merged, device, dtype and getattr(torch, dtype))
        except OSError as error:  # as transformers calls what it misses in a folder
            raise InputError(f"{folder}: its language model cannot be loaded ({error})") from error
        self.longest, self.num_beams = config.longest_clip, config.decoding["num_beams"]
        self.tokenizer = epath.Path(folder) / "tokenizer.json"
        try:
            self.trained_on = tuple(map(str, config.training["data"]["train"]))
        except (AttributeError, KeyError, TypeError):  # anybody may have written it
            self.trained_on = ()
        try:
            self.knows_lost_video = lost.is_in(config.training)
        except (AttributeError, KeyError, TypeError):
            self.knows_lost_video = False
        self.knows_words = self._model.ctc is not None

    def __call__(
        self, utterances: Sequence[Utterance], languages: tuple[str, str], num_beams: int
    ) -> list[Recognition]:
        """See Recognizer."""
        modality = utterances[0].modality
        video = None if modality == "audio" else [one.frames for one in utterances]
        audio = None if modality == "video" else [one.samples for one in utterances]
        lengths, seen = [one.num_frames for one in utterances], None
        if video and any(one.seen is not None for one in utterances):
            seen = [np.ones(one.num_frames, bool) if one.seen is None else one.seen for one in utterances]
        try:
            features, counts = self._model.encode(video, audio, lengths, seen, self._compression)
            found = self._decode(features, counts, languages, num_beams)
        except ExportError as error:
            raise InputError(str(error)) from None
        return [
            Recognition(
                tuple(Hypothesis(one["text"], one["score"]) for one in hypotheses),
                lengths.cpu().numpy(),
                tuple(Word(**word) for word in hypotheses[0]["words"]) if "words" in hypotheses[0] else None,
            )
            for hypotheses, lengths in zip(found, counts, strict=True)
        ]

    def _decode(
        self, features: Sequence[Tensor], counts: Sequence[Tensor], languages: tuple[str, str], num_beams: int
    ) -> list[list[dict[str, Any]]]:
        """The hypotheses of each utterance, as ViAVSPModel.recognize gives them, of what its `encode` returns."""
        return self._model.recognize(features, counts, [languages] * len(features), num_beams=num_beams)


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
