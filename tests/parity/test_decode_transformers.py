"""Greedy and beam search against transformers' `generate` on the same converted model: ids and scores of all beams."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from tiny_llama import FEATURES, LORA, WIDTH, frozen_shapes
from whole_search import decode

from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.llm_folder import llama_config, load_llm
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.state import abstract_model

ROWS, SIZE, STEPS, END = 3, 6, 14, 2
SEVERAL = (7, END, 31)  # what is generated is filled up with the first
# Beams, early stopping, repetition penalty: one program each; everything else is traced.
PROGRAMS = [
    (1, False, 1.0), (1, False, 1.5), (5, False, 1.0), (5, True, 1.1), (5, "never", 1.0), (20, False, 1.5),
    (20, True, 1.0),
]  # fmt: skip
CASES = 44  # of every program


@pytest.fixture(scope="module")
def theirs(raw):
    """The random LLaMA in transformers, with a bias in the head by which the end token becomes likely or not."""
    model = transformers.AutoModelForCausalLM.from_pretrained(raw, attn_implementation="eager").eval()
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=END, pad_token_id=END)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    return model


@pytest.fixture(scope="module")
def search(llm):
    """(prompts [B, S, D], lengths, logits to add at the end tokens, config, these) → tokens and scores, jitted."""
    structure, trainable, _ = abstract_model(ModelConfig(llama_config(llm), LORA, FEATURES, jnp.float32))
    weights = jax.tree.map(lambda x: jnp.zeros(x.shape), trainable), {"llm": load_llm(llm, frozen_shapes(llm))}

    @functools.partial(jax.jit, static_argnames="ends")
    def run(weights, prompts, lengths, bias, config, ends):
        model, ended = nnx.merge(structure, *weights).llm, jnp.array(ends)

        def extend(tokens, parents, cache):
            logits, cache = model.extend(tokens, parents, cache)
            return logits.at[..., ended].add(bias), cache

        logits, cache = model.prefill(prompts, lengths, config.max_new_tokens, config.num_beams)
        return decode(extend, logits.at[..., ended].add(bias), cache, config, ends)

    return functools.partial(run, weights)


def generate(model, prompts, lengths, bias, config, ends):
    """What transformers makes of it: ids [B, M, G], filled with the first end token, and scores [B, M]."""
    size, beams = prompts.shape[1], config.num_beams
    x = np.stack([np.roll(row, size - n, 0) for row, n in zip(prompts, lengths, strict=True)])
    mask = np.arange(size)[None] >= size - lengths[:, None]
    processors = transformers.LogitsProcessorList()
    penalty = config.repetition_penalty
    if penalty != 1.0 and not mask.all():
        # generate's own would overlook as many generated tokens as a prompt has padding (transformers 5.23).
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(penalty))
        penalty = 1.0
    with torch.no_grad():
        model.lm_head.bias[:] = 0
        model.lm_head.bias[list(ends)] = bias
        out = model.generate(
            inputs_embeds=torch.tensor(x), attention_mask=torch.tensor(mask).long(), logits_processor=processors,
            num_beams=beams, num_return_sequences=beams, max_new_tokens=config.max_new_tokens,
            min_new_tokens=config.min_new_tokens, length_penalty=config.length_penalty,
            early_stopping=config.early_stopping, repetition_penalty=penalty, do_sample=False,
            return_dict_in_generate=True, output_scores=True, eos_token_id=list(ends), pad_token_id=ends[0],
        )  # fmt: skip
    ids = out.sequences.numpy()
    if beams == 1:
        log_probs = torch.stack(out.scores, 1).log_softmax(-1).gather(-1, out.sequences[..., None])[..., 0]
        is_end = np.isin(ids, ends)
        before_end = np.cumsum(is_end, 1) - is_end == 0
        scores = np.where(before_end, log_probs, 0).sum(1)
    else:
        scores = out.sequences_scores.numpy()
    ids = np.pad(ids, [(0, 0), (0, config.max_new_tokens - ids.shape[1])], constant_values=ends[0])
    return ids.reshape(len(prompts), beams, -1), scores.reshape(len(prompts), beams)


def cases(beams, early_stopping, repetition_penalty):
    rng = np.random.default_rng(beams)
    for _ in range(CASES):
        prompts = rng.normal(size=(ROWS, SIZE, WIDTH)).astype(np.float32)
        lengths = np.full(ROWS, SIZE) if rng.random() < 0.3 else rng.integers(1, SIZE + 1, ROWS)
        config = DecodingConfig(
            max_new_tokens=STEPS, num_beams=beams, early_stopping=early_stopping,
            min_new_tokens=int(rng.choice([0, 0, 5])), length_penalty=float(rng.choice([-0.5, 0.0, 1.0, 2.0])),
            repetition_penalty=repetition_penalty,
        )  # fmt: skip
        yield prompts, lengths, float(rng.choice([-40.0, 0.0, 3.0, 4.0, 5.0, 6.0, 9.0])), config


def compare(search, theirs, program, ends):
    """Holds all cases of a program against transformers; counts the texts that each token ended."""
    seen = collections.Counter()
    for case in cases(*program):
        ids, scores = generate(theirs, *case, ends)
        tokens, ours = search(*case, ends=ends)
        np.testing.assert_array_equal(tokens, ids)
        np.testing.assert_allclose(ours, scores, atol=1e-4, rtol=0)
        is_end = np.isin(ids, ends)
        lengths = np.where(is_end.any(-1), is_end.argmax(-1), STEPS)
        seen.update(str(ids[place][n]) for place, n in np.ndenumerate(lengths) if n < STEPS)
        seen.update(lengths=len(set(lengths.ravel())), cut=(lengths == STEPS).sum(), ended=(lengths < STEPS).sum())
    assert min(seen["cut"], seen["ended"]) > CASES / 2 and seen["lengths"] > CASES
    return seen


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equals_transformers(search, theirs, program):
    compare(search, theirs, program, (END,))


@pytest.mark.parametrize("program", [(1, False, 1.0), (3, False, 1.0), (5, True, 1.1), (5, "never", 1.0)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_several_tokens_may_end_a_text(search, theirs, program):
    seen = compare(search, theirs, program, SEVERAL)
    assert all(seen[str(end)] > CASES / 2 for end in SEVERAL)


def test_there_are_300_cases():
    assert len(PROGRAMS) * CASES > 300
