"""Compares a language model in a Hugging Face folder, as this project computes with it, with transformers.

    python -m convert.check_llm HF_DIR [--prompts FILE]

Nothing is written. Both models are in memory in float32, 8 bytes a weight together. Status 0: the model may be trained
here; 1: something differs; 2: the folder cannot be used, and why.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx, traverse_util

from convert.from_hf import load_params, read_tokenizer
from viavsp_jax.data.prompt import Prompt, instruction_text, read_eos_ids
from viavsp_jax.decoding.search import DecodingConfig, Search, result
from viavsp_jax.llm_config import llama_config
from viavsp_jax.models.llama import Llama
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.runtime.backends import start_devices
from viavsp_jax.runtime.errors import InputError, reported_to_user

Tree = dict[str, Any]

PROMPTS = (
    "Hãy nhận diện câu tiếng Việt này. Đầu vào: ",
    "Hôm nay trời đẹp, cả nhà mình đi chợ mua hoa quả rồi về nấu cơm.",
    "Thủ đô của Việt Nam là",
    "The capital of France is",
    "1 2 3 5 8 13",
    "Xin chào! Bạn tên là gì?",
)
TOKENS = 20  # that each search writes
BEAMS = 5
WITHIN = 1e-4  # of the largest logit; rounding of a deep model in float32 stays below a tenth of it
_DRAWN = 6, 24  # prompts and their length, where there is no tokenizer


@dataclasses.dataclass(frozen=True)
class Check:
    """A row of the table."""

    what: str
    found: str
    good: bool


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same model in both libraries, and what is run through it."""

    graph: nnx.GraphDef
    weights: Tree
    theirs: transformers.PreTrainedModel
    prompts: list[list[int]]
    end_ids: tuple[int, ...]

    def ours(self, weights: Tree) -> Llama:
        return nnx.merge(self.graph, weights)


def open_pair(folder: pathlib.Path, prompts: list[list[int]], end_ids: tuple[int, ...]) -> Pair:
    """Loads the folder twice."""
    config = llama_config(folder)

    def build() -> Llama:
        return Llama(config, LoRAConfig(1), jnp.float32, rngs=nnx.Rngs(0))

    graph, abstract = nnx.split(nnx.eval_shape(build))
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(abstract))
    weights = {path: jnp.zeros(x.shape, x.dtype) for path, x in flat.items() if "lora" in path}
    weights |= {
        path: jnp.asarray(x) for path, x in traverse_util.flatten_dict(load_params(folder, "float32")["llm"]).items()
    }
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    return Pair(graph, traverse_util.unflatten_dict(weights), theirs.eval(), prompts, end_ids)


def padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows int32[B, S], filled up on the right, and their lengths int32[B]."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    rows = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    return rows, lengths


def logits_error(pair: Pair) -> float:
    """The largest difference of any logit of a prompt, in units of the largest logit."""
    rows, lengths = padded(pair.prompts)

    @jax.jit
    def run(weights: Tree, rows: jax.Array, lengths: jax.Array) -> jax.Array:
        model, places = pair.ours(weights), jnp.arange(rows.shape[1])[None]
        ids = (places < lengths[:, None]).astype(jnp.int32)
        hidden = model(model.embed(rows), ids, jnp.broadcast_to(places, rows.shape), None, "none")
        return model.logits(hidden)

    worst = 0.0
    for ours, prompt in zip(run(pair.weights, rows, lengths), pair.prompts, strict=True):
        with torch.inference_mode():
            theirs = pair.theirs(torch.tensor([prompt])).logits[0].float().numpy()
        error = np.abs(np.asarray(ours)[: len(prompt)] - theirs).max() / np.abs(theirs).max()
        worst = max(worst, float(error) if np.isfinite(error) else np.inf)
    return worst


def equal_searches(pair: Pair, beams: int) -> int:
    """For how many prompts all hypotheses have the same tokens."""
    rows, lengths = padded(pair.prompts)
    config = DecodingConfig(max_new_tokens=TOKENS, num_beams=beams)
    search = Search(config, pair.end_ids)

    @jax.jit
    def run(weights: Tree, rows: jax.Array, lengths: jax.Array) -> jax.Array:
        model = pair.ours(weights)
        logits, cache = model.prefill(model.embed(rows), lengths, TOKENS, beams)
        return result(search.run(model.extend, search.start(logits), cache, TOKENS)[0])[0]

    return sum(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(np.asarray(run(pair.weights, rows, lengths)), generated(pair, beams), strict=True)
    )


def generated(pair: Pair, beams: int) -> Iterator[np.ndarray]:
    """What transformers writes after each prompt: int64[M, G], filled up with the first end token."""
    end = pair.end_ids[0]
    settings = transformers.GenerationConfig(
        max_new_tokens=TOKENS, num_beams=beams, num_return_sequences=beams, do_sample=False,
        eos_token_id=list(pair.end_ids), pad_token_id=end,
    )  # fmt: skip
    pair.theirs.generation_config = settings
    for prompt in pair.prompts:
        with torch.inference_mode():
            ids = pair.theirs.generate(torch.tensor([prompt])).numpy()[:, len(prompt) :]
        yield np.pad(ids, ((0, 0), (0, TOKENS - ids.shape[1])), constant_values=end)


def own_ids(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """What the tokenizer makes of a text by itself, less what it puts around it."""
    found = tokenizer(text, return_special_tokens_mask=True)
    return [one for one, special in zip(found["input_ids"], found["special_tokens_mask"], strict=True) if not special]


def token_checks(prompt: Prompt, texts: Sequence[str]) -> Iterator[Check]:
    """Instructions and labels against what transformers' tokenizer makes of the same texts."""
    tokenizer, begin = prompt.tokenizer, [] if prompt.begin_id is None else [prompt.begin_id]
    asked = prompt.instruction("vi", "vi")
    same = asked == [*begin, *own_ids(tokenizer, instruction_text("vi", "vi"))]
    yield Check("instruction as by the tokenizer", f"{len(asked)} tokens", same)
    plain = [own_ids(tokenizer, text) for text in texts]
    starts = [] if prompt.begin_id == prompt.end_id else begin  # else the label would be over at once
    good = sum(prompt.label(text) == [*starts, *ids, prompt.end_id] for text, ids in zip(texts, plain, strict=True))
    yield Check("labels as by the tokenizer", f"{good} of {len(texts)}", good == len(texts))
    read = sum(prompt.text(prompt.label(text)) == " ".join(text.split()) for text in texts)
    yield Check("labels read back as text", f"{read} of {len(texts)}", read == len(texts))
    begins = "no begin token" if prompt.begin_id is None else repr(tokenizer.convert_ids_to_tokens(prompt.begin_id))
    ends = ", ".join(repr(tokenizer.convert_ids_to_tokens(one)) for one in prompt.end_ids)
    yield Check("tokens around a label", f"{begins}; ends with {ends}", good=True)


def checks(folder: pathlib.Path, texts: Sequence[str]) -> Iterator[Check]:
    """The rows of the table, one after the other, as they are found. Raises InputError for what cannot be used."""
    config = llama_config(folder)
    tokenizer = read_tokenizer(folder, config.vocab_size)
    if tokenizer is None:
        ids = np.random.default_rng(0).integers(0, config.vocab_size, _DRAWN).tolist()
        end_ids = read_eos_ids(folder) or (0,)
        yield Check("tokenizer", "none; token ids are drawn", good=False)
    else:
        prompt = Prompt(tokenizer, "", eos_ids=read_eos_ids(folder))
        prompt.check_fits(config.vocab_size)
        yield from token_checks(prompt, texts)
        begin = [] if prompt.begin_id is None else [prompt.begin_id]
        ids = [[*begin, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        end_ids = prompt.end_ids
    pair = open_pair(folder, ids, end_ids)
    error = logits_error(pair)
    yield Check("logits, largest error / largest", f"{error:.1e} (limit {WITHIN:.0e})", error <= WITHIN)
    for what, beams in (("greedy search", 1), (f"beam search, {BEAMS} beams", BEAMS)):
        equal = equal_searches(pair, beams)
        yield Check(f"{what}, same tokens", f"{equal} of {len(ids)}", equal == len(ids))


def read_prompts(path: str | None) -> Sequence[str]:
    """The lines of a file that are not empty. Raises InputError if there are none."""
    if path is None:
        return PROMPTS
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {path}: cannot be read ({error}), expected a text file, a prompt a line") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"--prompts {path}: has no line with text, expected a prompt a line")
    return found


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.check_llm", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="HF_DIR", type=pathlib.Path, help="folder with config.json and *.safetensors")
    parser.add_argument("--prompts", metavar="FILE", help="texts to run through it, one a line (default: a few)")
    args = parser.parse_args()
    start_devices()
    found = []
    for check in checks(args.folder, read_prompts(args.prompts)):
        print(f"{'ok' if check.good else 'NOT OK':7} {check.what:34} {check.found}", flush=True)
        found.append(check)
    wrong = [one.what for one in found if not one.good]
    print(f"not safe to train here: {'; '.join(wrong)}" if wrong else "safe to train here")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
