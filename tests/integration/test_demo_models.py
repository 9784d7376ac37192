"""The demo's shipped models are what their scripts say: small, pre-trained, and made by code that runs."""

import random
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from places import ROOT
from small_run import DEMO_LLAMA
from transformers import AutoModelForCausalLM

from scripts import pretrain_demo_llm
from viavsp_jax.data.features import audio_features, video_input
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.prepare.demo.corpus import synthesize_clips
from viavsp_jax.prepare.demo.sentences import sample_sentences
from viavsp_jax.prepare.features.avhubert_torch import load_encoder

DEMO_AVHUBERT = DEMO_LLAMA.parent / "avhubert"


def test_weights_are_small():
    assert sum(path.stat().st_size for path in DEMO_LLAMA.parent.glob("*/*.safetensors")) <= 8_000_000


def test_language_model_reads_spelled_sentences():
    prompt = load_prompt(DEMO_LLAMA, "</s>")
    model = AutoModelForCausalLM.from_pretrained(DEMO_LLAMA, dtype=torch.float32)
    rng, right = random.Random(0), 0
    sentences = sample_sentences(5, 10, "test")  # none of them was in its training
    for sentence in sentences:
        letters = prompt.tokenizer.convert_tokens_to_ids(pretrain_demo_llm.spell(sentence, rng))
        ids = [*prompt.instruction("vi", "vi"), *letters, prompt.begin_id]
        out = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=prompt.end_id)
        right += prompt.text(out[0, len(ids) :].tolist()) == sentence
    assert right >= 9


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(DEMO_AVHUBERT)


@pytest.fixture(scope="module")
def clips(encoder):
    """What the encoder hears and sees, and the phonemes: of clips to fit a classifier on, and of clips of voices and
    sentences that it never met."""

    @torch.inference_mode()
    def read(clip):
        frames = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in clip.frames])
        audio = torch.from_numpy(audio_features(clip.samples, len(frames)))[None]
        video = torch.from_numpy(video_input(frames))[None]
        return encoder.audio_features(audio), encoder.video_features(video), clip.phoneme_labels

    return [[read(clip) for clip in synthesize_clips(3, *which)] for which in ((24, "train"), (6, "test"))]


@pytest.mark.parametrize(("modality", "accuracy"), [("av", 0.85), ("audio", 0.75), ("video", 0.7)])
def test_encoder_separates_phonemes_of_new_voices(encoder, clips, modality, accuracy):
    @torch.inference_mode()
    def features(heard, seen):
        return encoder.encode(heard if modality != "video" else None, seen if modality != "audio" else None)[1][0]

    known, new = ([(features(heard, seen).numpy(), labels) for heard, seen, labels in some] for some in clips)
    x, labels = (np.concatenate(part) for part in zip(*known, strict=True))
    present = np.unique(labels)
    means = np.stack([x[labels == label].mean(0) for label in present])
    right = total = 0
    for found, expected in new:
        distances = np.square(found[:, None] - means[None]).sum(-1)
        right += (present[distances.argmin(1)] == expected).sum()
        total += len(expected)
    assert right / total > accuracy


@pytest.mark.parametrize(
    ("script", "files", "options"),
    [
        ("pretrain_demo_llm", {"config.json", "model.safetensors", "tokenizer.json"}, ["--batch_size", "2"]),
        pytest.param(
            *("pretrain_demo_encoder", {"config.json", "model.safetensors"}, ["--batch_size", "2", "--clips", "4"]),
            marks=pytest.mark.full,
        ),
    ],
)
def test_scripts_make_such_folders(tmp_path, script, files, options):
    command = [sys.executable, f"scripts/{script}.py", "--output", str(tmp_path), "--steps", "2", *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert files <= {path.name for path in tmp_path.iterdir()}
