"""Training: the update, the validation pass and the loop around them."""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from flax import nnx
from tqdm import tqdm

from viavsp_jax import sharding
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import lengths, pipeline
from viavsp_jax.data.sources import LeftOut
from viavsp_jax.experiment import Experiment, TrainingSettings
from viavsp_jax.losses import Metrics, label_loss
from viavsp_jax.optimizer import make_optimizer, trains_encoder
from viavsp_jax.preflight.look import before_training
from viavsp_jax.runtime import distributed, programs
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.preemption import Preemption
from viavsp_jax.runtime.profiler import Profiler
from viavsp_jax.runtime.run_info import differences, run_info
from viavsp_jax.runtime.tensorboard import Writer
from viavsp_jax.runtime.throughput import Throughput
from viavsp_jax.state import TrainState

Batch = dict[str, jax.Array]
Tree = dict[str, Any]


def abstract_state(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of training as shapes with shardings (jax.ShapeDtypeStruct); nothing is computed."""
    whole = sharding.replicated(experiment.mesh)

    def placed(path, leaf):
        # Adam's moments of the encoder are twice its size.
        of_encoder = jax.tree_util.DictKey("encoder") in path
        return sharding.scattered(experiment.mesh, leaf.shape) if of_encoder else whole

    opt_state = jax.eval_shape(optimizer.init, experiment.trainable)
    opt_state = sharding.with_sharding(opt_state, jax.tree_util.tree_map_with_path(placed, opt_state))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(step, experiment.trainable, opt_state, experiment.batch_stats)


def init_state(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """New adapters, projector and optimizer state, and the pre-trained encoder, where `abstract_state` has them."""
    encoder, batch_stats = experiment.load_encoder()
    trainable = experiment.init_trainable() | encoder
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(experiment, optimizer))
    opt_state = programs.jit(experiment.mesh, optimizer.init, out_shardings=shardings.opt_state)(trainable)
    return TrainState(jax.device_put(jnp.int32(0), shardings.step), trainable, opt_state, batch_stats)


def make_train_step(
    structure: nnx.GraphDef,
    optimizer: optax.GradientTransformationExtraArgs,
    settings: TrainingSettings,
    train_encoder: bool = False,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]:
    """The update: gradients of the trainable weights only, metrics of the weights before it. To be jitted.

    Until the encoder is trained, it runs without dropout, and neither its weights nor its moments change.
    """

    def train_step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)

        def loss(trainable):
            model = nnx.merge(structure, trainable, state.batch_stats, frozen)
            logits = model(batch, key, settings.remat, train_encoder)
            value, metrics = label_loss(logits, batch["targets"], batch["weights"], settings.label_smoothing)
            return value, (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        gradients, (metrics, batch_stats) = jax.grad(loss, has_aux=True)(state.trainable)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable, train_encoder=train_encoder)
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, opt_state, batch_stats), metrics

    return train_step


def jit_train_step(
    experiment: Experiment, optimizer: optax.GradientTransformationExtraArgs, train_encoder: bool = False
) -> jax.stages.Wrapped:
    """(state, frozen, batch) → state, metrics; the buffers of the state are handed on from update to update.

    Compiles without weights too: `.lower(abstract_state(experiment, optimizer), experiment.frozen, batch)`.
    """
    step = make_train_step(experiment.structure, optimizer, experiment.settings.training, train_encoder)
    # Pinned, so that the state keeps its place.
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(experiment, optimizer))
    return programs.jit(
        experiment.mesh, step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(experiment.mesh))
    )


def jit_validation_step(experiment: Experiment) -> jax.stages.Wrapped:
    """(state, frozen, batch) → metrics of the batch without dropout."""

    def validation_step(state: TrainState, frozen: Tree, batch: Batch) -> Metrics:
        logits = nnx.merge(experiment.structure, state.trainable, state.batch_stats, frozen)(batch)
        return label_loss(logits, batch["targets"], batch["weights"])[1]

    return programs.jit(experiment.mesh, validation_step, out_shardings=sharding.replicated(experiment.mesh))


def largest(tree: Tree) -> jax.Array:
    """float32 [], the largest absolute value of all; NaN where there is one."""
    return jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(tree)]).max()


def summarize(metrics: list[Metrics]) -> dict[str, float]:
    """Merges the metrics of several batches; waits for the devices."""
    total = Metrics.empty()
    for one in jax.device_get(metrics):
        total = total.merge(one)
    return {name: float(value) for name, value in total.compute().items()}


def say(text: str) -> None:
    """One line for the user, from one process, beside the progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


class Trainer:
    """One run: what the loop needs, built once."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: epath.PathLike,
        throughput: Throughput,
        left_out: LeftOut | None = None,
    ):
        self.experiment, self.throughput = experiment, throughput
        data = experiment.settings.data
        self.settings, self.data, self.prompt = experiment.settings.training, data, experiment.prompt
        self.profiler = Profiler(self.settings.profile_steps, workdir)
        self.rows = sharding.local_rows(experiment.mesh, data.rows)
        self.left_out = left_out or {}
        if count := sum(map(len, self.left_out.values())):
            say(f"{count} records do not fit a row and are left out, see {epath.Path(workdir) / lengths.FILE}")
        self.batches = pipeline.training_batches(data, self.prompt, self.rows, self.left_out)
        self.optimizer, self.schedule = make_optimizer(experiment.settings.optimizer)
        self.state = init_state(experiment, self.optimizer)
        self.run_info = run_info(experiment.mesh, pipeline.shard_folders(data))
        self.checkpoints = Checkpoints(workdir, self.settings.checkpoint_keep)
        if (step := self.checkpoints.latest_step()) is not None:
            say(f"continuing from update {step} in {workdir}")
            self.restore(step)
        self.frozen = experiment.load_frozen()
        self.writer = Writer(workdir)
        self.pending: list[Metrics] = []  # of the updates since the last log
        self.validation_step = jit_validation_step(experiment)
        self.largest_weight = programs.jit(experiment.mesh, largest, out_shardings=sharding.replicated(experiment.mesh))

    def restore(self, step: int) -> None:
        """Takes up the state of a checkpoint, and says what is not as it was then."""
        config = json.loads(self.experiment.config)
        self.checkpoints.check_fits(step, self.experiment.fits)
        self.checkpoints.check_data(step, config)
        self.state = self.checkpoints.restore(step, self.state, self.batches)
        before = self.checkpoints.restore_run_info(step) | {"config": self.checkpoints.restore_config(step)}
        for change in differences(before, self.run_info | {"config": config}):
            say(f"since update {step}: {change}")

    def check_finite(self, step: int, what: str, value: float) -> None:
        """InputError, which stops the run before that is saved, when `value` is no number any more."""
        if not np.isfinite(value):
            last = self.checkpoints.latest_step()
            saved = "no checkpoint is saved" if last is None else f"the last checkpoint is of update {last}"
            raise InputError(
                f"the {what} is {value} at update {step}, expected a number: lower config.optimizer.peak_lr or look "
                f"for broken records; {saved}"
            )

    def validate(self, step: int, preemption: Preemption) -> dict[str, float] | None:
        """Scores the validation split and writes the scores; None when it was told to stop on the way."""
        metrics = []
        for batch in pipeline.validation_batches(self.data, self.prompt, self.rows, self.left_out):
            batch = sharding.put_batch(self.experiment.mesh, batch)
            metrics.append(self.validation_step(self.state, self.frozen, batch))
            jax.block_until_ready(metrics[-2:-1])  # one ahead, as in training
            # Of the last update the scores are what the run was for.
            if step < self.settings.updates and preemption.noticed():
                return None
        scores = summarize(metrics)
        self.check_finite(step, "loss", scores["loss"])
        self.writer.write(step, {f"valid/{name}": value for name, value in scores.items()})
        say(f"update {step}: validation loss {scores['loss']:.4f}, token accuracy {scores['accuracy']:.4f}")
        return scores

    def save(self, step: int, preemption: Preemption, stop: bool) -> None:
        """Starts saving a checkpoint after validation, for which a preemption leaves no time."""
        scores = None
        if not stop:
            with self.throughput.phase("validation"):
                scores = self.validate(step, preemption)
        if scores is None:
            if self.pending:
                self.check_finite(step, "loss", summarize(self.pending)["loss"])
            self.check_finite(step, "largest weight", float(self.largest_weight(self.state.trainable)))
            scores = {"accuracy": 0.0}
        with self.throughput.phase("checkpoint"):
            config, fits = self.experiment.config, self.experiment.fits
            self.checkpoints.save(self.state, self.batches, config, fits, self.run_info, scores)

    def log(self, step: int, bar: tqdm) -> None:
        """Writes the mean metrics of the updates since the last log, up to `step`, and their throughput."""
        scores = summarize(self.pending)
        self.check_finite(step, "loss", scores["loss"])
        utterances = sum(float(one.loss.count) for one in self.pending)
        rate, seconds = float(self.schedule(step - 1)), self.throughput.seconds()
        self.writer.write(step, {
            **{f"train/{name}": value for name, value in scores.items()},
            "train/learning_rate": rate,
            "train/utterances_per_update": utterances / len(self.pending),
            **{f"throughput/{name}": value for name, value in self.throughput.interval(utterances).items()},
            **{f"wall_time/{name}": value / sum(seconds.values()) for name, value in seconds.items()},
        })  # fmt: skip
        bar.set_postfix(loss=f"{scores['loss']:.3f}", accuracy=f"{scores['accuracy']:.3f}", refresh=False)
        self.pending = []

    def update(self, step: int, first: bool) -> Metrics:
        """Dispatches update `step`; the one before is done when this returns."""
        with self.throughput.phase("data"):
            batch = sharding.put_batch(self.experiment.mesh, next(self.batches))
        optimizer = self.experiment.settings.optimizer
        train_encoder = trains_encoder(optimizer, step)
        if first or train_encoder != trains_encoder(optimizer, step - 1):
            with self.throughput.phase("compile"):
                train_step = jit_train_step(self.experiment, self.optimizer, train_encoder)
                self.train_step = train_step.lower(self.state, self.frozen, batch).compile()
        self.profiler.before(step, self.throughput)
        with jax.profiler.StepTraceAnnotation("update", step_num=step):
            self.state, metrics = self.throughput.update(self.train_step, self.state, self.frozen, batch)
        return metrics

    def run(self, preemption: Preemption) -> bool:
        """Trains to the last update, from wherever the newest checkpoint stands; True when it was told to stop."""
        settings, start, last, stop = self.settings, int(self.state.step), self.settings.updates, False
        interval = 0.5 if sys.stderr.isatty() else 20
        silent = jax.process_index() > 0
        with tqdm(total=last, initial=start, unit="update", desc="train", mininterval=interval, disable=silent) as bar:
            for step in range(start + 1, last + 1):
                metrics = self.update(step, first=step == start + 1)
                bar.update()
                # Of the updates before this one, while the devices work on it.
                if (step - 1) % settings.log_every == 0 and self.pending:
                    self.log(step - 1, bar)
                self.pending.append(metrics)
                stop = step < last and preemption.noticed()
                self.profiler.after(step, self.throughput, final=stop or step == last)
                if stop or step == last or step % settings.checkpoint_every == 0:
                    self.throughput.wait()
                    if step % settings.log_every == 0:
                        self.log(step, bar)
                    self.save(step, preemption, stop)
                    stop = step < last and preemption.noticed()
                if stop:
                    break
        with self.throughput.phase("checkpoint"):
            self.checkpoints.wait()
        say(self.throughput.report())
        if stop:
            name = preemption.cause.name
            say(f"stopped by {name} after update {step}, which is saved: the same command continues from there")
        return stop

    def close(self) -> None:
        """Waits for saves under way and closes the files."""
        self.checkpoints.close()
        self.batches.close()
        self.writer.close()


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Trains `config` in `workdir`; called again after a stop, it continues.

    On SIGTERM or SIGHUP the update under way is finished and saved; then it returns, as when all is done. Likewise on
    Ctrl-C, but that it ends the process with status 130 then.

    Raises InputError for bad input. When another process of the run has died, this one ends: distributed.others_alive.
    """
    with contextlib.closing(Throughput()) as throughput, Preemption() as preemption:
        with distributed.others_alive(), throughput.phase("start-up"):
            ready = before_training(config, workdir)
            trainer = Trainer(ready.experiment, workdir, throughput, ready.left_out)
        with contextlib.closing(trainer), distributed.others_alive():
            preemption.hold()
            stopped = trainer.run(preemption)
    if stopped and preemption.status:
        sys.exit(preemption.status)
