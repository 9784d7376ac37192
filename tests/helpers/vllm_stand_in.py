"""What stands for `vllm serve merged --enable-prompt-embeds`: its requests and answers, with transformers behind them.

Requests are read as vLLM reads them (renderers/embed_utils.py), answers are those of its completions API
(entrypoints/openai/completion/protocol.py).
"""

import base64
import contextlib
import http.server
import io
import json
import threading

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def read_prompt(body: dict) -> torch.Tensor:
    stored = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
    return torch.load(stored, weights_only=True, map_location="cpu")


class MergedModel:
    """Greedy decoding by the plain language model of a folder; keeps the bodies of the requests."""

    def __init__(self, folder, name="merged"):
        self.llm = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer, self.name = AutoTokenizer.from_pretrained(folder), name
        self.bodies, self.together, self._lock = [], None, threading.Lock()

    def __call__(self, path: str, body: dict | None) -> tuple[int, dict]:
        if (path, body) == ("/v1/models", None):
            return 200, {"object": "list", "data": [{"id": self.name, "object": "model", "max_model_len": 2048}]}
        assert path == "/v1/completions" and body["model"] == self.name
        if self.together:
            self.together.wait(30)  # until so many requests are here at a time
        with self._lock:
            self.bodies.append(body)
            return 200, self.complete(body)

    @torch.inference_mode()
    def complete(self, body: dict) -> dict:
        assert body["temperature"] == 0 and body["ignore_eos"]
        prompt = read_prompt(body)[None].to(self.llm.dtype)
        out = self.llm.generate(
            inputs_embeds=prompt, do_sample=False, max_new_tokens=body["max_tokens"],
            min_new_tokens=body["min_tokens"] or None, eos_token_id=body["stop_token_ids"],
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        ids = out.sequences[0].tolist()
        chosen = [float(x[0].float().log_softmax(-1)[one]) for x, one in zip(out.logits, ids, strict=True)]
        stopped = ids[-1] in body["stop_token_ids"]
        words = self.tokenizer.convert_ids_to_tokens(ids)
        found = {"tokens": words, "token_logprobs": chosen, "top_logprobs": [{}] * len(ids), "text_offset": []}
        choice = {
            "index": 0, "text": self.tokenizer.decode(ids, skip_special_tokens=True), "logprobs": found,
            "finish_reason": "stop" if stopped else "length", "stop_reason": ids[-1] if stopped else None,
            "token_ids": ids, "prompt_token_ids": [0] * prompt.shape[1], "prompt_logprobs": None,
        }  # fmt: skip
        usage = {"prompt_tokens": prompt.shape[1], "completion_tokens": len(ids)}
        return {"id": "cmpl-1", "object": "text_completion", "model": self.name, "choices": [choice], "usage": usage}


@contextlib.contextmanager
def serving(answer):
    """The address of a server: `answer` makes a status and a text, or what becomes JSON, of a path and a body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self):
            self.reply(None)

        def reply(self, body):
            status, said = answer(self.path, body)
            said = said if isinstance(said, str) else json.dumps(said)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
