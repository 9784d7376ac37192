"""The benchmarks of the model at toy size: both sides compute the same, and tables come out. Nothing is timed."""

import argparse
import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from benchmarks import beam_search, real_size, torch_training, train_step, vasr_clips
from benchmarks.random_model import SMALL, add_size_flags, named_tensors, prepare, to_torch
from configs import final
from viavsp_jax.data import pipeline
from viavsp_jax.losses import label_loss

SIZES = "--layers=2 --heads=2 --head_width=16 --ffn=48 --vocabulary=200 --feature_width=12".split()
TRAINING_SIDES = ["packed rows", "reference's way", "batched PyTorch, 2", "batched PyTorch, 2, logits at labels"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same model on both sides, and the clips."""
    parser = argparse.ArgumentParser()
    add_size_flags(parser, SMALL)
    folder, args = tmp_path_factory.mktemp("benchmark"), parser.parse_args(SIZES)
    model, records = prepare(folder, args, train_step.SPLITS)
    theirs = to_torch(model)
    return model, theirs, [torch_training.to_clip(one, model.experiment.prompt, theirs.device) for one in records]


def test_clips_are_of_vasr_sizes():
    prompt, clips = vasr_clips.make_prompt(1000), vasr_clips.draw_clips(500, 4, 1000)
    labels = [prompt.label(clip["transcript"]) for clip in clips]
    assert len(prompt.instruction("vi", "vi")) == 15
    assert {min(map(len, labels)), max(map(len, labels))} == {12, 28} and 19 < np.mean(list(map(len, labels))) < 21
    assert all(clip["cluster_counts"].sum() == len(clip["features"]) == 76 for clip in clips)
    assert 0.58 < np.mean([len(clip["cluster_counts"]) for clip in clips]) / 76 < 0.61
    assert prompt.text(labels[0]) == clips[0]["transcript"]


def test_reference_and_packed_rows_have_the_same_gradients(both):
    model, theirs, clips = both
    experiment, learnt = model.experiment, theirs.learnt
    (batch,) = pipeline.validation_batches(experiment.settings.data, experiment.prompt)

    def loss(trainable):
        logits = nnx.merge(experiment.structure, trainable, model.frozen)(batch)
        return label_loss(logits, batch["targets"], batch["weights"])[0]

    ours = jax.jit(jax.grad(loss))(model.trainable)
    named = named_tensors({"llm": ours["llm"]}) | named_tensors({"projector": ours["projector"]})
    checked = clips[: train_step.SPLITS["valid"]]
    theirs.llm.eval()
    sum(torch_training.clip_loss(theirs, [clip]) for clip in checked).backward()
    found = {name.replace("default.", ""): weight for name, weight in theirs.llm.named_parameters()}
    found |= {f"avfeat_to_llm.{name}": weight for name, weight in theirs.projector.named_parameters()}
    assert len(named) == len(learnt) == 2 * 3 * 2 + 2
    for name, gradient in named.items():
        torch.testing.assert_close(found[name].grad / len(checked), gradient, rtol=1e-3, atol=1e-6)
        assert gradient.abs().max() > 1e-5
    assert all(weight.grad is None for name, weight in found.items() if name not in named)


def test_a_side_with_another_model_is_noticed(both):
    model, theirs, clips = both
    with torch.no_grad():
        theirs.projector.bias += 0.1
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        train_step.check_losses(model, theirs, clips)
    with torch.no_grad():
        theirs.projector.bias -= 0.1


def test_train_step(tmp_path, capsys):
    comparison = train_step.main([*SIZES, "--rounds=1", "--batches=2", f"--output={tmp_path / 'figures.json'}"])
    assert list(comparison.rates) == TRAINING_SIDES
    assert list(comparison.ratios()) == TRAINING_SIDES[1:]
    assert comparison.table() in capsys.readouterr().out
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["comparisons"][0]["rates"] == comparison.rates
    assert written["facts"]["loss of packed rows"] == pytest.approx(written["facts"]["loss the reference's way"])


def test_beam_search(tmp_path):
    tiny = [*SIZES, "--rounds=1", "--clips=4", "--beams=3", "--new_tokens=5"]
    comparison = beam_search.main([*tiny, f"--output={tmp_path / 'figures.json'}"])
    assert list(comparison.ratios()) == ["one clip at a time", "same batch"]
    facts = json.loads((tmp_path / "figures.json").read_text())["facts"]
    assert facts["equal tokens, one clip at a time"] == facts["equal tokens, same batch"] == 1
    assert facts["mean new tokens"] > 4


@pytest.mark.parametrize("quantization", ["none", pytest.param("nf4", marks=pytest.mark.full)])
def test_real_size(tmp_path, quantization):
    tiny = [*SIZES, "--head_width=32", "--ffn=128", "--rounds=1", "--clips=2", "--beams=2", "--new_tokens=3"]
    flags = [f"--quantization={quantization}", "--rows=1", "--updates=1", "--batches=2"]
    found = real_size.main([*tiny, *flags, f"--output={tmp_path / 'figures.json'}"])
    decoded, trained = found
    theirs = quantization == "none"  # PyTorch has no such weights
    assert len(decoded.rates) == (3 if theirs else 1) and len(trained.rates) == (4 if theirs else 1)
    facts = json.loads((tmp_path / "figures.json").read_text())["facts"]
    (update,) = [value for name, value in facts.items() if name == "training, packed rows: ms an update"]
    clips = update * trained.rates["packed rows"][0] / 1e3
    most = final.get_config().data.row["clips"]
    assert 0.8 * most < clips <= most, "that a row of configs/final.py holds"
    step = facts["beam search, batched: ms a step"]
    assert step == pytest.approx(1e3 * 2 / 3 / decoded.rates["batched"][0]), "two clips, three steps"


def test_real_size_of_one_work_alone(tmp_path):
    tiny = [*SIZES, "--rounds=1", "--work", "training", "--alone", "--rows=1", "--updates=1"]
    (found,) = real_size.main(tiny)
    assert list(found.rates) == ["packed rows"]
