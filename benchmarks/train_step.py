"""Clips a second of training: this project's packed rows against PyTorch, same model, same kind of clips.

    python -m benchmarks.train_step [--output FILE.json]

By default a LLaMA of 109 million parameters with adapters on q, k and v and a projector; float32 on a CPU, bfloat16 on
a GPU; training mode. A call makes full updates, Adam included. Both sides take the threads they take by themselves: all
cores.

    packed rows           shards → Grain → packed rows → the jitted update, as in training
    reference's way       transformers + peft: one clip at a time, a Python loop over runs of frames, logits at every
                          position, 8 backward passes an update
    batched PyTorch       transformers + peft: clips padded to the longest of the batch, SDPA without a mask (causal
                          attention needs none for padding on the right), one index_add for all runs, labels in and
                          loss out; the fastest of --batches
    …, logits at labels   the same, but that its head runs at label positions only, which few do

PyTorch finds its clips in memory, as tensors. The encoder runs on no side: the reference runs it in every update.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import rounds, torch_training
from benchmarks.random_model import SMALL, RandomModel, TorchModel, add_size_flags, prepare, to_torch
from viavsp_jax import sharding, update
from viavsp_jax.data import pipeline
from viavsp_jax.losses import summarize
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.runtime.errors import reported_to_user
from viavsp_jax.state import TrainState

SPLITS = {"train": 256, "valid": 8}  # clips; losses are compared on the latter
WINDOW = 128  # positions; no clip of VASR's sizes is longer
# Of sides that compute in this dtype.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


class PackedTraining:
    """Updates of this project. Called, it makes `updates` of them, waits and returns the number of clips."""

    def __init__(self, model: RandomModel, updates: int):
        experiment = model.experiment
        self.mesh, self.frozen, self.updates = experiment.mesh, model.frozen, updates
        self.batches = pipeline.training_batches(experiment.settings.data, experiment.prompt)
        optimizer, _ = make_optimizer(experiment.settings.optimizer)
        self.step = update.jit_train_step(experiment, optimizer)
        trainable = jax.tree.map(jnp.copy, model.trainable)  # the step takes them over
        places = jax.tree.map(lambda x: x.sharding, update.abstract_state(experiment, optimizer))
        self.state = jax.device_put(TrainState(jnp.int32(0), trainable, optimizer.init(trainable)), places)
        self.clips = 0  # in all updates so far

    @property
    def clips_per_update(self) -> float:
        """Mean of all updates so far."""
        return self.clips / int(self.state.step)

    def __call__(self) -> int:
        pending = []
        for _ in range(self.updates):
            batch = sharding.put_batch(self.mesh, next(self.batches))
            self.state, metrics = self.step(self.state, self.frozen, batch)
            pending.append(metrics)
        clips = round(sum(float(metrics.loss.count) for metrics in pending))
        self.clips += clips
        return clips


def our_losses(model: RandomModel) -> tuple[float, float]:
    """Loss of the validation split without dropout: mean over clips of their mean over tokens, and over all tokens."""
    experiment = model.experiment
    step = update.jit_validation_step(experiment)
    state = TrainState(jnp.int32(0), model.trainable, opt_state=())

    def loss(change_weights: Callable[[np.ndarray], np.ndarray]) -> float:
        metrics = []
        for batch in pipeline.validation_batches(experiment.settings.data, experiment.prompt):
            batch["weights"] = change_weights(batch["weights"])
            metrics.append(step(state, model.frozen, sharding.put_batch(experiment.mesh, batch)))
        return summarize(metrics)["loss"]

    return loss(lambda weights: weights), loss(np.sign)


@torch.no_grad()
def check_losses(model: RandomModel, theirs: TorchModel, clips: Sequence[torch_training.Clip]) -> dict[str, float]:
    """Losses of all sides on the validation split, without dropout; AssertionError when they are not the same."""
    clips = clips[: SPLITS["valid"]]
    theirs.llm.eval()
    with torch_training.autocast(theirs):
        singles = [torch_training.clip_loss(theirs, [clip]).item() for clip in clips]
        batch = torch_training.batch_loss(theirs, clips).item()
        label_only = torch_training.label_only_batch_loss(theirs, clips).item()
    theirs.llm.train()
    a_clip, a_token = our_losses(model)
    tolerance = TOLERANCE[model.experiment.settings.dtype]
    np.testing.assert_allclose(np.mean(singles), a_clip, rtol=tolerance)
    np.testing.assert_allclose([batch, label_only], a_token, rtol=tolerance)
    return {"loss_of_packed_rows": a_clip, "loss_the_reference's_way": float(np.mean(singles))}


def torch_sides(
    theirs: TorchModel, clips: Sequence[torch_training.Clip], batches: Sequence[int]
) -> dict[str, torch_training.Training]:
    """PyTorch's, by name; tries the batch sizes first."""
    optimizer = torch.optim.Adam(theirs.learnt, lr=1e-4, betas=(0.9, 0.98), eps=1e-8, fused=True)

    def training(loss, batch, accumulate=1):
        return torch_training.Training(theirs, optimizer, loss, clips, batch, accumulate)

    choices = {batch: training(torch_training.batch_loss, batch) for batch in batches}
    tried = rounds.compare({f"batch {batch}": side for batch, side in choices.items()}, 1, "batch size of PyTorch")
    best = max(zip(tried.rates.values(), choices, strict=True))[1]
    return {
        "reference's way": training(torch_training.clip_loss, 1, accumulate=8),
        f"batched PyTorch, {best}": choices[best],
        f"batched PyTorch, {best}, logits at labels": training(torch_training.label_only_batch_loss, best),
    }


def add_flags(parser: argparse.ArgumentParser, rows: int, batches: Sequence[int]) -> None:
    """The flags of both sides."""
    parser.add_argument("--rows", type=int, default=rows, help="packed rows an update (default: %(default)s)")
    # Several, since PyTorch's threads spin on for a while after its turn.
    parser.add_argument("--updates", type=int, default=4, help="updates of packed rows a round (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=batches, help="PyTorch's (default: %(default)s)")


@reported_to_user()
def main(arguments: Sequence[str] | None = None) -> rounds.Comparison:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.split("\n")[0])
    rounds.add_flags(parser)
    add_flags(parser, rows=1, batches=[4, 8, 16])
    add_size_flags(parser, SMALL)
    args = parser.parse_args(arguments)
    settings = {"data.rows": args.rows, "data.row.window": WINDOW}
    with tempfile.TemporaryDirectory() as folder:
        model, records = prepare(pathlib.Path(folder), args, SPLITS, **settings)
        theirs = to_torch(model)
        clips = [torch_training.to_clip(record, model.experiment.prompt, theirs.device) for record in records]
        facts = check_losses(model, theirs, clips)
        sides = {"packed rows": PackedTraining(model, args.updates)} | torch_sides(theirs, clips, args.batches)
        comparison = rounds.compare(sides, args.rounds, "training")
    rounds.report([comparison], args.output, **facts)
    return comparison


if __name__ == "__main__":
    main()
