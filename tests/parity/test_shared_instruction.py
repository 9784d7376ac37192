"""Rows that hold their instruction once, against rows in which every utterance has its own: losses and all gradients.

The latter are laid out here by simple loops, and their attention shares nothing.

Letters: E encoder width, S positions, L labels.
"""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import llm_kinds
import numpy as np
import pytest
from flax import nnx
from hf_weights import load_params
from random_encoders import PRE_LN
from tiny_tokenizers import KINDS as TOKENIZERS

from viavsp_jax.data import packing, pipeline
from viavsp_jax.data.prompt import Prompt, PromptSettings, load_prompt
from viavsp_jax.llm_folder import llama_config
from viavsp_jax.losses import label_loss
from viavsp_jax.models import attention
from viavsp_jax.models.attention import PackedAttention
from viavsp_jax.models.lora import PROJECTIONS, LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig, ViAVSP
from viavsp_jax.state import abstract_model, split

E = PRE_LN.embed_dim
TOLERANCE = 1e-5  # of losses; of gradients, in units of the largest of its tensor
# Windows of 5 and 6 positions are shorter than any utterance and any instruction.
KINDS = ("llama", "llama, one kv head", "mistral with a window", "qwen3, biases and windows", "gemma 3")
IN_SUITE = {
    ("plain", "llama, one kv head"), ("plain", "gemma 3"), ("chat", "mistral with a window"),
    ("chat", "qwen3, biases and windows"),
}  # fmt: skip
PAIRS = [
    pytest.param(name, kind, marks=() if (name, kind) in IN_SUITE else pytest.mark.full)
    for name in ("plain", "chat")
    for kind in KINDS
]
LANGUAGES = [("vi", "vi"), ("en", "vi"), ("vi", "vi"), ("vi", "vi"), ("en", "vi"), ("vi", "vi"), ("vi", "vi")]
ROWS = [(0, 2, 3), (5, 6), (1, 4), ()]  # as they are packed
TEXTS = ["một", "hai ba", "bốn năm sáu", "một hai ba bốn", "ba", "chào các bạn", "hai"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> dict[str, Prompt]:
    """Without anything between speech and label, and with what a chat template puts there."""
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZERS["qwen"](folder)
    settings = {name: PromptSettings("{source} {target}:", name == "chat") for name in ("plain", "chat")}
    made = {name: load_prompt(folder, "", one) for name, one in settings.items()}
    assert [bool(prompt.after) for prompt in made.values()] == [False, True]
    return made


def make_records(of_clips: bool) -> list[packing.Arrays]:
    rng, records = np.random.default_rng(0), []
    for number, ((source, target), text) in enumerate(zip(LANGUAGES, TEXTS, strict=True)):
        counts = rng.integers(1, 3, size=rng.integers(4, 9)).astype(np.int32)
        frames = int(counts.sum())
        if of_clips:
            inputs = {
                "video": rng.integers(0, 256, (frames, 88, 88)).astype(np.uint8),
                "audio": rng.normal(size=(frames, 104)).astype(np.float32), "has_audio": True,
                "has_video": (number != 2) & (np.arange(frames) != number),
            }  # fmt: skip
        else:
            inputs = {"features": rng.normal(size=(frames, E)).astype(np.float32)}
        texts = {"id": str(number), "transcript": text, "source_language": source, "target_language": target}
        records.append(texts | inputs | {"cluster_counts": counts})
    return records


def with_one_instruction(records, prompt, shape, of_clips) -> packing.Arrays:
    """All rows that the pipeline makes, and one of padding."""
    to_utterance = packing.ToUtterance(prompt, shape, np.float32, of_clips)
    batches = list(pipeline.packed_batches(grain.MapDataset.source(records), to_utterance, 1))
    rows = [{name: value[0] for name, value in batch.items()} for batch in batches]
    return packing.stack_rows([*rows, packing.empty_row(shape, None if of_clips else E, np.float32)])


def with_their_own(records, prompt, shape, of_clips) -> packing.Arrays:
    """The same utterances in each row, but each with its own instruction and numbered from 0 on."""
    to_utterance = packing.ToUtterance(prompt, shape, np.float32, of_clips)
    utterances, rows = [to_utterance.map(record) for record in records], []
    for numbers in ROWS:
        row = packing.empty_row(shape, None if of_clips else E, np.float32)
        frames = labels = start = 0
        for number, one in enumerate((utterances[number] for number in numbers), 1):
            end = start + len(one["tokens"])
            for name in ("tokens", "is_speech"):
                row[name][start:end] = one[name]
            row["segment_ids"][start:end], row["positions"][start:end] = number, np.arange(end - start)
            slots = np.where(one["frame_slot"] < 0, shape.positions, one["frame_slot"] + start)
            for name in packing.CLIPS if of_clips else packing.FEATURES:
                row[name][frames : frames + len(slots)] = slots if name == "frame_slot" else one[name]
            for name in ("label_index", "targets", "weights"):
                row[name][labels : labels + len(one[name])] = one[name] + start * (name == "label_index")
            frames, labels, start = frames + len(slots), labels + len(one["targets"]), end
        rows.append(row)
    return packing.stack_rows(rows)


def make_weights(config: ModelConfig, llm: dict):
    """Trainable and frozen ones, random where `llm` does not have them; adapters matter."""
    _, trainable, frozen = split(ViAVSP(config, nnx.Rngs(params=0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), trainable), frozen | llm


def loss_and_gradients(config: ModelConfig, attention: PackedAttention, weights, batch):
    """The loss, and its gradients by all weights there are, those that do not learn included."""
    structure, _, _ = abstract_model(dataclasses.replace(config, attention=attention))
    trainable, frozen = weights

    @jax.jit
    @jax.value_and_grad
    def run(weights):
        model = nnx.merge(structure, weights[0], frozen | {"llm": weights[1]})
        return label_loss(model(batch, train_encoder=True), batch["targets"], batch["weights"])[0]

    return run((trainable, frozen["llm"]))


def compare(config: ModelConfig, weights, prompt: Prompt, of_clips: bool) -> None:
    """Of rows of which utterances fill one to its last position; attention knows no looser bounds than it has to."""
    records, room = make_records(of_clips), packing.RowShape(300, 48, 99, clips=3, window=300)
    whole = [packing.ToUtterance(prompt, room, np.float32, of_clips).map(record) for record in records]
    before, lengths = ([len(one[name]) for one in whole] for name in ("instruction", "tokens"))
    assert len(set(before)) == 2 and min(before) > 6
    full = sum(lengths[number] for number in ROWS[0]) - 2 * before[0]
    shape = dataclasses.replace(room, positions=full, window=max(lengths))
    ours = with_one_instruction(records, prompt, shape, of_clips)
    assert [row.max() for row in ours["segment_ids"]] == [4, 3, 3, 0] and (ours["segment_ids"][0] > 0).all()
    shared = PackedAttention(shape.window, instruction=max(before))
    loss, gradients = loss_and_gradients(config, shared, weights, ours)
    theirs = with_their_own(records, prompt, room, of_clips)
    expected, their_gradients = loss_and_gradients(config, PackedAttention(), weights, theirs)
    np.testing.assert_allclose(loss, expected, rtol=TOLERANCE)
    of_all = max(np.abs(one).max() for one in jax.tree.leaves(their_gradients))
    for (path, one), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(their_gradients), strict=True):
        largest = np.abs(other).max()
        if largest < 1e-6 * of_all:  # none but for rounding: of biases of keys, which a softmax does not feel
            assert np.abs(one).max() < 1e-6 * of_all and "'encoder'" in str(path) and "bias" in str(path), path
            continue
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * largest, err_msg=str(path))


@pytest.mark.parametrize("name, kind", PAIRS)
def test_language_models(kind, name, prompts, tmp_path):
    prompt = prompts[name]
    sizes = {"vocab_size": len(prompt.tokenizer), "max_position_embeddings": 400}
    # Of smaller weights: with those of the kinds gradients' rounding errors grow to 1.1e-5 on their way back.
    llm_kinds.make(kind, **sizes, initializer_range=0.1).save_pretrained(tmp_path)
    config = ModelConfig(llama_config(tmp_path), LoRAConfig(2, 4.0, targets=PROJECTIONS), E, jnp.float32)
    compare(config, make_weights(config, jax.tree.map(jnp.asarray, load_params(tmp_path))), prompt, of_clips=False)


def test_an_encoder_that_is_trained(prompts, tmp_path):
    prompt = prompts["chat"]
    llm_kinds.make("llama", vocab_size=len(prompt.tokenizer), initializer_range=0.1).save_pretrained(tmp_path)
    encoder = dataclasses.replace(PRE_LN, audio_dim=104, frontend_channels=2, resnet_channels=(2, 2, 2, 2))
    config = ModelConfig(llama_config(tmp_path), LoRAConfig(2, 4.0), E, jnp.float32, encoder=encoder)
    compare(config, make_weights(config, jax.tree.map(jnp.asarray, load_params(tmp_path))), prompt, of_clips=True)


def test_both_rooms_mean_the_same_segment():
    assert attention.INSTRUCTION == packing.INSTRUCTION
