"""Every kind of language model against transformers: logits and tokens; adapters on all projections against peft.

Some kinds stand for all in the suite; `scripts/test.sh -m full` runs all of them, and more prompts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import nnx, traverse_util
from hf_weights import load_params
from llm_kinds import KINDS, VOCAB, make, old_spelling
from whole_search import decode

from convert.names import Tree, tensors
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.llm_folder import llama_config
from viavsp_jax.models.llama import Llama, LlamaConfig
from viavsp_jax.models.lora import PROJECTIONS, LoRAConfig

LENGTH = 40  # beyond all windows, and the lengths before rope was stretched
LORA = LoRAConfig(2, 6.0, 0.0, PROJECTIONS, rslora=True)


def built(folder, lora=LORA) -> tuple[nnx.GraphDef, Tree]:
    """Structure and weights of our model, the adapters random."""
    config = llama_config(folder)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Llama(config, lora, jnp.float32, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    flat = {
        path: rng.normal(0, 0.1, x.shape).astype(np.float32)
        for path, x in traverse_util.flatten_dict(nnx.to_pure_dict(abstract)).items()
    }
    flat |= traverse_util.flatten_dict(load_params(folder, "float32")["llm"])
    return graph, traverse_util.unflatten_dict(flat)


def logits_of(graph, params, tokens, lora=True):
    """Logits [B, S, V] of rows without padding."""
    if not lora:
        flat = traverse_util.flatten_dict(params)
        params = traverse_util.unflatten_dict({p: 0 * v if p[-1] == "b" else v for p, v in flat.items()})

    @jax.jit
    def run(params, tokens):
        model = nnx.merge(graph, params)
        positions = jnp.tile(jnp.arange(tokens.shape[1]), (len(tokens), 1))
        return model.logits(model(model.embed(tokens), jnp.ones_like(tokens), positions, None, "none"))

    return run(params, tokens)


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def assert_close(ours, theirs, within, what=""):
    """In units of the largest value."""
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < within, (what, error)


# Fields of LlamaConfig that differ from LLaMA 2's, and a kind that has them so.
FIELDS = {
    "rope_theta": "llama", "rms_norm_eps": "llama", "rope_scaling": "llama 3.2", "biased": "llama, all biases",
    "qk_norm": "qwen3", "windows": "mistral with a window", "activation": "gemma 3", "unit_offset": "gemma 3",
    "post_norms": "gemma 3", "embedding_scale": "gemma 3", "query_scale": "gemma 3", "local_rope_theta": "gemma 3",
}  # fmt: skip
LLAMA_2 = {"rope_theta": 1e4, "rms_norm_eps": 1e-5} | {
    field.name: field.default for field in dataclasses.fields(LlamaConfig) if field.default is not dataclasses.MISSING
}

USUAL = {"llama 3.2", "llama, all biases", "mistral with a window", "qwen2", "qwen3, biases and windows", "gemma 3"}
MARKED = [kind if kind in USUAL else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Makes a folder, a model and token ids of a kind, once."""

    @functools.cache
    def of(kind):
        folder, model = tmp_path_factory.mktemp("kind"), make(kind)
        model.save_pretrained(folder)
        return folder, model, np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH))

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers(kinds, kind):
    folder, model, tokens = kinds(kind)
    ours = logits_of(*built(folder), tokens, lora=False)
    assert_close(ours, their_logits(model, tokens), 1e-5)


@pytest.mark.parametrize("field", LLAMA_2)
def test_every_field_changes_the_numbers(kinds, field):
    """So that the comparisons with transformers would see it if one was ignored."""
    folder, _, tokens = kinds(FIELDS[field])
    config = llama_config(folder)
    other = dataclasses.replace(config, **{field: LLAMA_2[field]})
    assert other != config
    graph, params = built(folder)
    plain, flat = logits_of(graph, params, tokens), traverse_util.flatten_dict(params)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Llama(other, LORA, jnp.float32, rngs=nnx.Rngs(0))))
    shapes = traverse_util.flatten_dict(nnx.to_pure_dict(abstract))
    params = {path: flat.get(path, np.ones(shape.shape, np.float32)) for path, shape in shapes.items()}
    found = logits_of(graph, traverse_util.unflatten_dict(params), tokens)
    assert np.abs(found - plain).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize("kind", MARKED)
def test_gradients_of_every_adapter_equal_peft(kinds, kind):
    folder, _, tokens = kinds(kind)
    graph, params = built(folder)
    target = np.random.default_rng(2).normal(size=(*tokens.shape, VOCAB)).astype(np.float32)
    ours = jax.grad(lambda p: jnp.mean((logits_of(graph, p, tokens) - target) ** 2))(params)
    only = {p: v for p, v in traverse_util.flatten_dict(params).items() if "lora" in p}
    names = sorted({tensor.name.split(".")[-3] for tensor in tensors({"llm": traverse_util.unflatten_dict(only)})})
    config = peft.LoraConfig(r=2, lora_alpha=6.0, lora_dropout=0.0, target_modules=names, use_rslora=True)
    theirs = peft.get_peft_model(make(kind), config).eval()
    weights, flat = dict(theirs.named_parameters()), traverse_util.flatten_dict({"llm": params}, sep="/")
    compared = tensors({"llm": traverse_util.unflatten_dict(only)})
    assert len(compared) == 3 * 7 * 2  # layers, projections, a and b
    for tensor in compared:
        value = tensor.to_theirs(flat[tensor.path][tensor.index]).copy()
        weights[tensor.name.replace(".weight", ".default.weight")].data = torch.tensor(value)
    logits = theirs(torch.tensor(tokens)).logits
    assert_close(logits_of(graph, params, tokens), logits.detach().numpy(), 1e-5)
    ((logits - torch.tensor(target)) ** 2).mean().backward()
    gradients = traverse_util.flatten_dict({"llm": ours}, sep="/")
    for tensor in compared:
        expected = weights[tensor.name.replace(".weight", ".default.weight")].grad.numpy()
        assert_close(tensor.to_theirs(gradients[tensor.path][tensor.index]), expected, 1e-4, tensor.name)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "gemma" not in kind])  # which came later
def test_the_old_spelling_means_the_same(kinds, kind):
    folder, _, _ = kinds(kind)
    before, text = llama_config(folder), (folder / "config.json").read_text()
    old_spelling(folder)
    assert llama_config(folder) == before
    (folder / "config.json").write_text(text)


SIZE, STEPS, END = 9, 14, 2


@pytest.mark.parametrize(
    ("kind", "count", "beams"),
    [
        *((kind, 4, 5) for kind in KINDS if kind in USUAL),
        ("gemma 3", 4, 1),
        *(pytest.param(kind, 100, beams, marks=pytest.mark.full) for kind in KINDS for beams in (1, 5)),
    ],
)
def test_searches_write_what_transformers_writes(kinds, kind, count, beams):
    """Prompts of different lengths, and more tokens than any window has."""
    folder, model, _ = kinds(kind)
    graph, params = built(folder)
    rng = np.random.default_rng(3)
    prompts, lengths = rng.integers(3, VOCAB, (count, SIZE)), rng.permuted(np.arange(count) % (SIZE - 1)) + 2
    config = DecodingConfig(max_new_tokens=STEPS, num_beams=beams)

    @jax.jit
    def run(params, prompts, lengths):
        llm = nnx.merge(graph, params)
        logits, cache = llm.prefill(llm.embed(prompts), lengths, STEPS, beams)
        return decode(llm.extend, logits, cache, config, END)

    zeros = {p: 0 * v if p[-1] == "b" else v for p, v in traverse_util.flatten_dict(params).items()}
    found = run(traverse_util.unflatten_dict(zeros), prompts, lengths)[0]
    for row, prompt, length in zip(found, prompts, lengths, strict=True):
        with torch.no_grad():
            theirs = model.generate(
                torch.tensor(prompt[None, :length]), max_new_tokens=STEPS, num_beams=beams, num_return_sequences=beams,
                do_sample=False, eos_token_id=END, pad_token_id=END,
            )[:, length:].numpy()  # fmt: skip
        filled = np.pad(theirs, ((0, 0), (0, STEPS - theirs.shape[1])), constant_values=END)
        np.testing.assert_array_equal(row, filled)
