"""A server of the merged language model of an export, `vllm serve ... --enable-prompt-embeds`, as its clients see it.

Letters: S positions of a prompt, D LLM width, G generated tokens.
"""

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch

from viavsp_jax.data.prompt import one_line
from viavsp_jax.runtime.errors import InputError

_SECONDS = 600  # to wait for an answer: other clients may be before this one in the queue
_MOST_CHARACTERS = 300  # of what a server says that are handed on


class VLLMServer:
    """Greedy decoding by another process, over HTTP; it may be called from several threads at a time."""

    def __init__(self, url: str):
        """`url` is the address without /v1. Raises InputError if nothing there answers as vLLM does."""
        if not url.startswith(("http://", "https://")):
            raise InputError(f"the server is {url!r}, expected an address such as http://localhost:8000")
        self.url = url.rstrip("/")
        try:
            self.model = self._ask("/v1/models")["data"][0]["id"]
        except (KeyError, IndexError, TypeError) as error:
            raise self._unexpected(error) from None

    def decode(
        self, prompt: torch.Tensor, end_ids: Sequence[int], max_new_tokens: int, min_new_tokens: int
    ) -> tuple[list[int], float]:
        """The text after a prompt floating[S, D]: int[G], the end token included, and its log-probability.

        Raises InputError where the server refuses it, or cannot be reached any more.
        """
        stored = io.BytesIO()
        torch.save(prompt.cpu(), stored)
        answer = self._ask("/v1/completions", {
            "model": self.model, "prompt_embeds": base64.b64encode(stored.getvalue()).decode(), "temperature": 0,
            "max_tokens": max_new_tokens, "min_tokens": min_new_tokens,
            # The text ends as the export's texts do, whatever the language model's own end is.
            "stop_token_ids": list(end_ids), "ignore_eos": True,
            # Ids and not text: exports have their own way to text. 0: of the chosen tokens alone.
            "return_token_ids": True, "logprobs": 0,
        })  # fmt: skip
        try:
            (choice,) = answer["choices"]
            return list(choice["token_ids"]), float(sum(choice["logprobs"]["token_logprobs"]))
        except (KeyError, ValueError, TypeError) as error:
            raise self._unexpected(error) from None

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that the server answers to a GET, or to a POST of `body`."""
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise InputError(f"{self.url}{path}: the server answers {error.code} ({_reason(error)})") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(
                f"{self.url} cannot be reached ({reason}), expected a server started by vllm serve"
            ) from None
        except (ValueError, RecursionError) as error:
            raise self._unexpected(error) from None

    def _unexpected(self, error: Exception) -> InputError:
        return InputError(f"{self.url} answers otherwise than vLLM 0.11 and newer do ({error!r})")


def _reason(error: urllib.error.HTTPError) -> str:
    """What a refusal says: vLLM's `{"error": {"message": ...}}`, or whatever another server sent."""
    said = ""
    try:
        said = error.read().decode(errors="replace")
        said = json.loads(said)["error"]["message"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        pass
    return one_line(str(said))[:_MOST_CHARACTERS].rstrip(".") or error.reason
