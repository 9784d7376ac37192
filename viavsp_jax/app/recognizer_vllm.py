"""An exported model whose language model is elsewhere: a vLLM server decodes what is encoded here.

Letters: S positions, D LLM width.
"""

import concurrent.futures
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convert.decode_hf import check_device, read_config
from viavsp_jax.app.recognizer_torch import TorchRecognizer, default_device
from viavsp_jax.app.vllm_server import VLLMServer
from viavsp_jax.runtime.errors import InputError


class VLLMRecognizer(TorchRecognizer):
    """A recognizer.Recognizer that keeps encoder, projector and table of embeddings; utterances of a batch are decoded
    at the same time, by the likeliest token at each step."""

    def __init__(
        self, folder: str, url: str, device: str | None, dtype: str | None = None, compression: str | None = None
    ):
        """Asks the server, and loads an export; `device` and `dtype` are those of the encoder.

        Raises InputError if the server cannot be reached or the export is not usable.
        """
        self._server = VLLMServer(url)
        device = device or default_device()
        check_device(device)
        self._search = read_config(folder).decoding
        # After prompts of embeddings, vLLM neither searches with beams nor survives every penalty (its issue 57719).
        if self._search.get("repetition_penalty", 1.0) != 1.0:
            raise InputError(
                f"{folder} decodes with repetition_penalty={self._search['repetition_penalty']}, expected 1 for a "
                "vLLM server"
            )
        if not (pathlib.Path(folder) / "merged").exists():
            raise InputError(f"{folder} holds no merged/, which the server must have: export it again with --merge")
        # By way of the CPU: the GPU may be full of the server's memory, and most of the language model is let go.
        super().__init__(folder, None, "cpu", dtype, compression)
        self._model.llm = _Embeddings(self._model.llm.get_input_embeddings())
        self._model.to(device)
        self.num_beams = 1

    def _decode(
        self, features: Sequence[Tensor], counts: Sequence[Tensor], languages: tuple[str, str], num_beams: int
    ) -> list[list[dict[str, Any]]]:
        if num_beams != 1:
            raise InputError(f"num_beams is {num_beams}, expected 1: a vLLM server decodes without beams")
        with torch.inference_mode():
            x, mask = self._model.embed(features, counts, [languages] * len(features))
        prompts = [row[kept.bool()] for row, kept in zip(x, mask, strict=True)]
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            found = list(pool.map(self._ask, prompts))
        return [
            self._model.heard(
                one, [{"text": self._model.text(ids), "score": score}], [1.0], languages, self._model.hearing
            )
            for one, (ids, score) in zip(features, found, strict=True)
        ]

    def _ask(self, prompt: Tensor) -> tuple[list[int], float]:
        search = self._search
        return self._server.decode(
            prompt, self._model.end_ids, search["max_new_tokens"], search.get("min_new_tokens", 0)
        )


class _Embeddings(torch.nn.Module):
    """All that is needed of a language model to write its prompts."""

    def __init__(self, table: torch.nn.Module):
        super().__init__()
        self.table = table

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table
