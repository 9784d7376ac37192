"""Greedy and beam-search decodes: token ids, texts and scores."""

import dataclasses
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import traverse_util

from convert.names import flatten
from convert.to_hf import hugging_face_tensors
from tests.helpers.whole_search import decode
from tests.parity.avsp import ALPHA, Model, Tree, kinds, load_model
from tests.parity.rows import EXACT, WHOLE, Golden, Row, close, jit_quickly
from viavsp_jax.data.prompt import one_line
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.models.lora import LoRAConfig, merge_adapter

RUN = re.compile(r"beam(?P<beams>\d+)_lp(?P<length>-?[\d.]+)_rp(?P<repetition>[\d.]+)")


class Decoder:
    """Decodes prompts given as embeddings, with one program for each number of beams."""

    def __init__(self, model: Model):
        self.model = model
        self._run = jit_quickly(self._decode)

    def _decode(self, trainable: Tree, prompt: jax.Array, config: DecodingConfig) -> tuple[jax.Array, jax.Array]:
        llm = self.model.build(trainable).llm
        lengths = jnp.array([prompt.shape[1]])
        logits, cache = llm.prefill(prompt, lengths, config.max_new_tokens, config.num_beams)
        return decode(llm.extend, logits, cache, config, self.model.prompt.end_id)

    def __call__(
        self, prompt: np.ndarray, config: DecodingConfig, trainable: Tree | None = None
    ) -> tuple[list[list[int]], list[float]]:
        """[S, D] → hypotheses, best first, cut after the end token, and their scores."""
        tokens, scores = self._run(self.model.trainable if trainable is None else trainable, prompt[None], config)
        return [cut(ids, self.model.prompt.end_id) for ids in tokens[0].tolist()], scores[0].tolist()


def cut(ids: list[int], end_id: int) -> list[int]:
    """Up to the end token."""
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids


def installed(golden: Golden, model: Model, kind: str, prompt: np.ndarray, config: DecodingConfig) -> list[list[int]]:
    """What the installed transformers generates for the same prompt with the same weights, best first."""
    llm = transformers.AutoModelForCausalLM.from_pretrained(golden.path(f"avsp/llm_{kind}"), dtype=torch.float32)
    weights, adapters = flatten(model.frozen), flatten(model.trainable)
    for path in [path for path in weights if path.removesuffix("kernel") + "lora/a" in adapters]:
        a, b = (adapters[path.removesuffix("kernel") + f"lora/{name}"] for name in "ab")
        weights[path] = merge_adapter(weights[path], a, b, LoRAConfig(a.shape[-1], ALPHA, 0.0))
    named = hugging_face_tensors(
        {"llm": jax.tree.map(np.asarray, traverse_util.unflatten_dict(weights, sep="/")["llm"])}
    )
    llm.load_state_dict({name: torch.from_numpy(value) for name, value in named.items()}, strict=False)
    settings = dataclasses.asdict(config) | {"num_return_sequences": config.num_beams}
    del settings["seed"]
    end = model.prompt.end_id
    with torch.inference_mode():
        found = llm.eval().generate(
            inputs_embeds=torch.from_numpy(prompt)[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=transformers.GenerationConfig(**settings, eos_token_id=end, pad_token_id=end),
        )  # fmt: skip
    return [cut(ids, end) for ids in found.tolist()]


def run_row(
    golden: Golden, decoder: Decoder, kind: str, title: str, prompt: np.ndarray, config: DecodingConfig, run: Tree
) -> Row:
    """One recorded decode: ids of all recorded hypotheses, text of the best, and scores."""
    hypotheses, scores = decoder(prompt, config)
    # Where rounding decides between hypotheses, the recording says so, and only the best one counts.
    nbest = run["nbest"] if "nbest" in run and run["stable"]["nbest"] else []
    recorded = [one["tokens"] for one in nbest] or run["tokens"]
    found = hypotheses[: len(recorded)]
    if found != recorded or [found[0]] != run["tokens"]:
        theirs = installed(golden, decoder.model, kind, prompt, config)[: len(recorded)]
        here = f"transformers {transformers.__version__}"
        followed = f"{here} differs from the recording and is followed: {theirs[0]}, recorded {recorded[0]}"
        note = followed if found == theirs else f"{found[0]}, recorded {recorded[0]}, {here} {theirs[0]}"
        return Row(title, float(found != theirs), EXACT, note)
    # The reference leaves line breaks and control characters in; here a text is one line.
    if decoder.model.prompt.text(found[0]) != one_line(run["text"][0]):
        return Row(title, 1, EXACT, "another text for the same ids")
    if "nbest" in run:
        wanted = [one["score"] for one in nbest] + run["sequences_scores"]
        return close(title, [*scores[: len(nbest)], scores[0]], wanted, WHOLE)
    return close(title, scores[:1], [sum(run["token_logprobs_after_processors"])], WHOLE)


def checks(golden: Golden) -> Iterator[Row]:
    """All recorded decodes of all language models."""
    for kind in kinds(golden):
        decoder = Decoder(load_model(golden, kind))
        for path in golden.names(f"avsp/{kind}_sample*_decode.json"):
            sample = path.removeprefix(f"avsp/{kind}_").removesuffix("_decode.json")
            decodes, arrays = golden.json(path), golden.arrays(f"avsp/{kind}_{sample}_av.npz")
            length = golden.json(f"avsp/{kind}_info.json")[f"{sample}_av"]["prefix_len"]
            limit = decodes["max_new_tokens_effective"]
            yield Row(f"{kind} {sample} room", abs(decodes["max_length"] - length - limit), EXACT)
            prompt = arrays["llm_input"][0, :length]
            for name, run in decodes["runs"].items():
                named = RUN.fullmatch(name)
                config = DecodingConfig(
                    max_new_tokens=limit, num_beams=int(named["beams"]),
                    length_penalty=float(named["length"]), repetition_penalty=float(named["repetition"]),
                )  # fmt: skip
                yield run_row(golden, decoder, kind, f"{kind} {sample} {name}", prompt, config, run)
