"""Training: the update, the validation pass and the loop around them."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from etils import epath
from flax import nnx
from tqdm import tqdm

from viavsp_jax import sharding
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import pipeline
from viavsp_jax.errors import InputError
from viavsp_jax.experiment import Experiment, load_experiment
from viavsp_jax.metrics import Metrics, Writer, label_loss
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.state import TrainState

Batch = dict[str, jax.Array]
Tree = dict[str, Any]


def init_state(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """New adapters, projector and optimizer state on the devices of the mesh."""
    trainable = experiment.init_trainable()
    whole = sharding.replicated(experiment.mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=whole)(trainable)
    return TrainState(jax.device_put(jnp.int32(0), whole), trainable, opt_state)


def make_train_step(
    structure: nnx.GraphDef, optimizer: optax.GradientTransformation, config: ml_collections.ConfigDict
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]:
    """The update: gradients for what learns only, metrics of the weights before it. To be jitted."""

    def train_step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss(trainable):
            logits = nnx.merge(structure, trainable, frozen)(batch, key, config.remat)
            return label_loss(logits, batch["targets"], batch["weights"], config.label_smoothing)

        gradients, metrics = jax.grad(loss, has_aux=True)(state.trainable)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        return TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), opt_state), metrics

    return train_step


def make_validation_step(structure: nnx.GraphDef) -> Callable[[Tree, Tree, Batch], Metrics]:
    """Metrics of one batch without dropout. To be jitted."""

    def validation_step(trainable: Tree, frozen: Tree, batch: Batch) -> Metrics:
        logits = nnx.merge(structure, trainable, frozen)(batch)
        return label_loss(logits, batch["targets"], batch["weights"])[1]

    return validation_step


def summarize(metrics: list[Metrics]) -> dict[str, float]:
    """Merges the metrics of several batches; waits for the devices."""
    total = Metrics.empty()
    for one in jax.device_get(metrics):
        total = total.merge(one)
    return {name: float(value) for name, value in total.compute().items()}


class Trainer:
    """One run: what the loop needs, built once."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.PathLike):
        self.config = config
        self.experiment = load_experiment(config)
        self.batches = pipeline.training_batches(config, self.experiment.prompt)
        optimizer, self.schedule = make_optimizer(config)
        self.state = init_state(self.experiment, optimizer)
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        step = self.checkpoints.latest_step()
        if step is not None:
            tqdm.write(f"continuing from update {step} in {workdir}", file=sys.stderr)
            self.checkpoints.check_fits(step, self.experiment.fits)
            self.state = self.checkpoints.restore(step, self.state, self.batches)
        self.frozen = self.experiment.load_frozen()
        self.writer = Writer(workdir)
        # Pinned, so that the state keeps its place and its buffers can be handed on from update to update.
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        whole = sharding.replicated(self.experiment.mesh)
        step = make_train_step(self.experiment.structure, optimizer, config)
        self.train_step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))
        self.validation_step = jax.jit(make_validation_step(self.experiment.structure), out_shardings=whole)

    def checked(self, step: int, scores: dict[str, float]) -> dict[str, float]:
        """The scores, unless the loss is no number any more: InputError stops the run before that is saved."""
        if not jnp.isfinite(scores["loss"]):
            raise InputError(
                f"the loss is {scores['loss']} at update {step}, expected a number: lower config.optimizer.peak_lr or "
                f"look for broken records; the last checkpoint is of update {self.checkpoints.latest_step()}"
            )
        return scores

    def validate_and_save(self) -> dict[str, float]:
        """Scores the validation split, writes the scores and starts saving a checkpoint."""
        metrics = [
            self.validation_step(self.state.trainable, self.frozen, sharding.put_batch(self.experiment.mesh, batch))
            for batch in pipeline.validation_batches(self.config, self.experiment.prompt)
        ]
        step = int(self.state.step)
        scores = self.checked(step, summarize(metrics))
        self.writer.write(step, {f"valid/{name}": value for name, value in scores.items()})
        text = f"update {step}: validation loss {scores['loss']:.4f}, token accuracy {scores['accuracy']:.4f}"
        tqdm.write(text, file=sys.stderr)
        self.checkpoints.save(self.state, self.batches, self.config.to_json(), self.experiment.fits, scores)
        return scores

    def log(self, step: int, pending: list[Metrics]) -> dict[str, float]:
        """Writes the mean of the last updates' metrics."""
        scores = self.checked(step, summarize(pending))
        utterances = sum(float(one.loss.count) for one in pending)
        rate = float(self.schedule(step - 1))
        self.writer.write(step, {
            **{f"train/{name}": value for name, value in scores.items()},
            "train/learning_rate": rate,
            "train/utterances_per_update": utterances / len(pending),
        })  # fmt: skip
        return scores

    def run(self) -> None:
        """Trains to `config.updates`, from wherever the newest checkpoint stands."""
        config, start = self.config, int(self.state.step)
        pending: list[Metrics] = []
        interval = 0.5 if sys.stderr.isatty() else 20
        with tqdm(total=config.updates, initial=start, unit="update", desc="train", mininterval=interval) as bar:
            for step in range(start + 1, config.updates + 1):
                batch = sharding.put_batch(self.experiment.mesh, next(self.batches))
                self.state, metrics = self.train_step(self.state, self.frozen, batch)
                pending.append(metrics)
                bar.update()
                if step % config.log_every == 0:
                    scores = self.log(step, pending)
                    bar.set_postfix(loss=f"{scores['loss']:.3f}", accuracy=f"{scores['accuracy']:.3f}", refresh=False)
                    pending = []
                if step % config.checkpoint.every == 0 or step == config.updates:
                    self.validate_and_save()

    def close(self) -> None:
        """Waits for saves under way and closes the files."""
        self.checkpoints.close()
        self.writer.close()


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Trains `config` in `workdir`; called again after a stop, it continues."""
    with contextlib.closing(Trainer(config, workdir)) as trainer:
        trainer.run()
