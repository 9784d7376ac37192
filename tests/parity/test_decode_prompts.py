"""Prompts of all kinds from training to the exported class: the same ids, texts and scores as by our own model."""

import json
import types

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from tiny_llama import FEATURES, frozen_shapes, structure, write_checkpoints, write_llama
from tiny_tokenizers import KINDS
from whole_search import decode

from convert import decode_hf, from_hf, to_hf
from convert.hub.prompt_viavsp import after_speech
from viavsp_jax.data import packing, pipeline
from viavsp_jax.data.prompt import PromptSettings, load_prompt
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.llm_folder import load_llm
from viavsp_jax.runtime.errors import InputError

STEPS, BEAMS, VOCABULARY = 7, 3, 400
CASES = {
    "without a begin token": ("qwen", "", PromptSettings()),
    "chat without a begin token": ("qwen", "<|im_end|>", PromptSettings("Write in {target}: ", True)),
    "chat with a begin token": ("llama3", "", PromptSettings(chat=True)),
    "of SentencePiece": ("llama2_chat", "</s>", PromptSettings("What is said?", True)),
}


def make_clips():
    rng, clips = np.random.default_rng(0), []
    for number in range(3):
        counts = rng.integers(1, 4, 3 + 2 * number).astype(np.int32)
        features = rng.normal(size=(counts.sum(), FEATURES)).astype(np.float16)
        clips.append({
            "id": str(number), "features": features, "cluster_counts": counts, "transcript": "một",
            "source_language": "vi", "target_language": "vi",
        })  # fmt: skip
    return clips


def ours(llm, trainable, prompt, clips, beams):
    """Tokens int32[B, M, G] and scores float32[B, M] of our own model."""
    data = types.SimpleNamespace(dtype="float32", of_clips=False, feature_width=FEATURES)
    ((_, batch),) = pipeline.decoding_batches(data, prompt, clips, len(clips), 256)
    config = DecodingConfig(STEPS, num_beams=beams)

    @jax.jit
    def run(trainable, frozen):
        model = nnx.merge(structure(llm), trainable, frozen)
        logits, cache = model.prefill(batch, STEPS, beams)
        return decode(model.extend, logits, cache, config, prompt.end_ids)

    return jax.device_get(run(trainable, {"llm": load_llm(llm, frozen_shapes(llm))}))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A converted model, learnt weights, the prompt and the export; the model writes one of its ends now and then."""
    kind, end_token, settings = CASES[request.param]
    folder = tmp_path_factory.mktemp("prompts")
    raw, llm, work, export = (folder / name for name in ("raw", "llm", "work", "hf"))
    write_llama(raw, vocab_size=VOCABULARY)  # more than any of the tokenizers has
    KINDS[kind](raw)
    from_hf.convert(raw, llm)
    trainable = write_checkpoints(work, llm, end_token=end_token, prompt=settings)
    prompt = load_prompt(llm, end_token, settings)
    written = ours(llm, trainable, prompt, make_clips(), 1)[0][0, 0]
    ends = [prompt.end_id, int(next(one for one in written[2:] if one not in written[:2]))]
    (llm / "generation_config.json").write_text(json.dumps({"eos_token_id": ends[::-1]}))
    prompt = load_prompt(llm, end_token, settings)
    assert prompt.end_ids == tuple(ends)
    to_hf.export(work, export, merge=True)
    return llm, trainable, prompt, export


def test_the_export_builds_the_ids_of_training(case):
    llm, _, prompt, export = case
    model = decode_hf.load_model(str(export), None, False, "cpu", None)
    for languages in (("vi", "vi"), ("en", "vi"), ("vi", "fr")):
        assert model.instruction(*languages) == prompt.instruction(*languages)
    assert after_speech(model.tokenizer, model.wording) == list(prompt.after)
    assert model.end_ids == prompt.end_ids
    clips, shape = make_clips(), packing.RowShape(positions=300, frames=60, labels=99, clips=1, window=300)
    features, counts = ([torch.tensor(clip[name]) for clip in clips] for name in ("features", "cluster_counts"))
    x, mask = model.embed(features, counts, [("vi", "vi")] * len(clips))
    table = model.llm.get_input_embeddings().weight.detach().numpy()
    for clip, row, kept in zip(clips, x.detach().numpy(), mask.bool().numpy(), strict=True):
        utterance = packing.ToUtterance(prompt, shape, np.float32).map(clip)
        length = utterance["label_index"][0] + 1
        assert kept.sum() == length
        text = ~utterance["is_speech"][:length]
        np.testing.assert_array_equal(row[kept][text], table[utterance["tokens"][:length][text]])


@pytest.mark.parametrize("merged", [False, True])
def test_the_export_writes_what_our_model_writes(case, merged):
    llm, trainable, prompt, export = case
    model, clips = decode_hf.load_model(str(export), None, merged, "cpu", None), make_clips()
    features, counts = ([torch.tensor(clip[name]) for clip in clips] for name in ("features", "cluster_counts"))
    cut = 0
    for beams in (1, BEAMS):
        tokens, scores = ours(llm, trainable, prompt, clips, beams)
        found = model.recognize(features, counts, [("vi", "vi")] * len(clips), num_beams=beams)
        for ids, values, hypotheses in zip(tokens.tolist(), scores, found, strict=True):
            assert [one["text"] for one in hypotheses] == [prompt.text(one) for one in ids]
            np.testing.assert_allclose([one["score"] for one in hypotheses], values, atol=1e-4)
            for one, shown in zip(ids, hypotheses, strict=True):
                until = next((n for n, token in enumerate(one) if token in prompt.end_ids), STEPS)
                assert shown["tokens"] == one[:until]
                cut += until < STEPS and one[until] == prompt.end_ids[1]
    assert cut, "a text is to end with the second end"


def test_what_else_the_export_says(case):
    _, _, prompt, export = case
    generation = transformers.GenerationConfig.from_pretrained(export / "merged")
    assert generation.eos_token_id == list(prompt.end_ids) and generation.pad_token_id == prompt.pad_id
    config = json.loads((export / "config.json").read_text())
    assert config["end_token"] == prompt.end_token and config["training"]["prompt"]["chat"] == prompt.settings.chat
    card = (export / "README.md").read_text()
    assert ("chat template" in card) == prompt.settings.chat
    assert prompt.settings.instruction in card


def test_another_prompt_does_not_fit_the_checkpoint(tmp_path):
    raw, llm, work = (tmp_path / name for name in ("raw", "llm", "work"))
    write_llama(raw, vocab_size=VOCABULARY)
    KINDS["qwen"](raw)
    from_hf.convert(raw, llm)
    write_checkpoints(work, llm, end_token="", prompt=PromptSettings(chat=True))
    (llm / "chat_template.jinja").write_text((llm / "chat_template.jinja").read_text().replace("assistant", "model"))
    with pytest.raises(InputError, match="was trained with tokenizer and instruction sha256"):
        to_hf.export(work, tmp_path / "hf")
