"""Training: the loop around the update, validation and checkpoints."""

import contextlib
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from viavsp_jax import run_settings, sharding, update
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.compatibility import check_continues, check_fits
from viavsp_jax.data import lengths, pipeline, vocabulary
from viavsp_jax.data.packing import ClipUnits
from viavsp_jax.data.sources import LeftOut
from viavsp_jax.experiment import Experiment
from viavsp_jax.losses import Metrics, summarize
from viavsp_jax.monitor import Monitor, say
from viavsp_jax.optimizer import learning, make_optimizer, make_schedule
from viavsp_jax.preflight.look import before_training
from viavsp_jax.runtime import distributed, programs
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.preemption import Preemption
from viavsp_jax.runtime.profiler import Profiler
from viavsp_jax.runtime.run_info import differences, run_info
from viavsp_jax.runtime.throughput import Throughput
from viavsp_jax.samples import Samples
from viavsp_jax.settings import completed

Tree = dict[str, Any]


def largest(tree: Tree) -> jax.Array:
    """float32 [], the largest absolute value of all; NaN where there is one."""
    return jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(tree)]).max()


class Trainer:
    """One run: what the loop needs, built once."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: epath.PathLike,
        throughput: Throughput,
        left_out: LeftOut | None = None,
        clip_units: ClipUnits | None = None,
    ):
        self.experiment, self.throughput = experiment, throughput
        data = experiment.settings.data
        self.settings, self.data, self.prompt = experiment.settings.training, data, experiment.prompt
        self.config = json.loads(experiment.config)
        self.checkpoints = Checkpoints(workdir, self.settings.checkpoint_keep)
        self.profiler = Profiler(self.settings.profile_steps, workdir)
        self.rows = sharding.local_rows(experiment.mesh, data.rows)
        self.left_out = left_out or {}
        if count := sum(map(len, self.left_out.values())):
            say(f"{count} records do not fit a row and are left out, see {epath.Path(workdir) / lengths.FILE}")
        self.clip_units, self.fits = clip_units, dict(experiment.fits)
        if clip_units:
            self.fits["units of the CTC head sha256"] = clip_units.units.sha256()
            if jax.process_index() == 0:
                vocabulary.write(workdir, clip_units.units)
        self.batches = pipeline.training_batches(data, self.prompt, self.rows, self.left_out, clip_units)
        self.optimizer, self.schedule = make_optimizer(experiment.settings.optimizer)
        self.run_info = run_info(experiment.mesh, pipeline.shard_folders(data))
        self.best_score, self.not_better = self.checkpoints.best_score()
        if (step := self.checkpoints.latest_step()) is None:
            self.state = update.init_state(experiment, self.optimizer)
            if source := self.settings.init_from:
                say(f"beginning with the weights of {source}")
        else:
            say(f"continuing from update {step} in {workdir}")
            self.restore(step)
        self.monitor = Monitor(experiment, workdir, throughput, self.config)
        self.pending: list[Metrics] = []  # of the updates since the last log
        self.validation_step = update.jit_validation_step(experiment)
        self.largest_weight = programs.jit(experiment.mesh, largest, out_shardings=sharding.replicated(experiment.mesh))

    def restore(self, step: int) -> None:
        """Takes up the state of a checkpoint, and says what is not as it was then."""
        check_fits(self.checkpoints, step, self.fits)
        check_continues(self.checkpoints, step, self.config)
        abstract = update.abstract_state(self.experiment, self.optimizer)
        self.state = self.checkpoints.restore(step, abstract, self.batches)
        before = self.checkpoints.restore_run_info(step) | {"config": self.checkpoints.restore_config(step)}
        for change in differences(before, self.run_info | {"config": self.config}):
            say(f"since update {step}: {change}")
        saved = run_settings.parts_of(completed(before["config"])).optimizer
        rates = [float(make_schedule(one)(step)) for one in (saved, self.experiment.settings.optimizer)]
        if not np.isclose(*rates, rtol=1e-5, atol=0):
            say(f"since update {step}: the learning rate was {rates[0]:.4g}, is {rates[1]:.4g}")

    def finished(self) -> str | None:
        """Why there is nothing to do any more; None while there is."""
        step = int(self.state.step)
        if step >= self.settings.updates:
            return f"all {self.settings.updates} updates are done; a larger config.updates goes on"
        if 0 < self.settings.patience <= self.not_better:
            return (
                f"the last {self.not_better} checkpoints are no better than one before, and config.checkpoint.patience "
                f"is {self.settings.patience}"
            )
        return None

    def load(self) -> None:
        """Reads what takes long: the frozen weights and the clips to decode."""
        self.frozen = self.experiment.load_frozen()
        clips = self.experiment.settings.samples.clips
        self.samples = Samples(self.experiment, self.left_out) if clips else None

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
        """Scores the validation split and shows the scores; None when it was told to stop on the way."""
        metrics = []
        for batch in pipeline.validation_batches(self.data, self.prompt, self.rows, self.left_out, self.clip_units):
            batch = sharding.put_batch(self.experiment.mesh, batch)
            metrics.append(self.validation_step(self.state, self.frozen, batch))
            jax.block_until_ready(metrics[-2:-1])  # one ahead, as in training
            # Of the last update the scores are what the run was for.
            if step < self.settings.updates and preemption.noticed():
                return None
        scores, decoded = summarize(metrics), None
        self.check_finite(step, "loss", scores["loss"])
        if self.samples:
            decoded = self.samples.decode(self.state.trainable, self.frozen | self.state.batch_stats)
            scores["wer"] = decoded.wer
        self.monitor.validated(step, scores, decoded)
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
            scores = {"accuracy": 0.0, "score": 0.0}
        else:
            scores["score"] = 1 / (1 + scores["wer"]) if self.settings.best_by == "wer" else scores["accuracy"]
            self.not_better = 0 if scores["score"] > self.best_score else self.not_better + 1
            self.best_score = max(self.best_score, scores["score"])
        scores["not_better"] = self.not_better
        with self.throughput.phase("checkpoint"):
            units = self.clip_units and self.clip_units.units.text
            config = self.experiment.config
            self.checkpoints.save(self.state, self.batches, config, self.fits, self.run_info, scores, units)

    def log(self, step: int) -> None:
        """Shows what the updates since the last log gave, up to `step`."""
        scores = self.monitor.log(step, float(self.schedule(step - 1)), self.pending, self.batch)
        self.check_finite(step, "loss", scores["loss"])
        self.pending = []

    def update(self, step: int, first: bool) -> Metrics:
        """Dispatches update `step`; the one before is done when this returns."""
        with self.throughput.phase("data"):
            self.batch = next(self.batches)
            batch = sharding.put_batch(self.experiment.mesh, self.batch)
        parts, before = (learning(self.experiment.settings.optimizer, one) for one in (step, step - 1))
        if first or parts != before:
            with self.throughput.phase("compile"):
                train_step = update.jit_train_step(self.experiment, self.optimizer, parts)
                self.train_step = train_step.lower(self.state, self.frozen, batch).compile()
        self.profiler.before(step, self.throughput)
        with jax.profiler.StepTraceAnnotation("update", step_num=step):
            self.state, metrics = self.throughput.update(self.train_step, self.state, self.frozen, batch)
        self.monitor.updated()
        return metrics

    def run(self, preemption: Preemption) -> bool:
        """Trains to the last update, from wherever the newest checkpoint stands; True when it was told to stop."""
        settings, start, last, stop = self.settings, int(self.state.step), self.settings.updates, False
        self.monitor.start(start)
        for step in range(start + 1, last + 1):
            metrics = self.update(step, first=step == start + 1)
            # Of the updates before this one, while the devices work on it.
            if (step - 1) % settings.log_every == 0 and self.pending:
                self.log(step - 1)
            self.pending.append(metrics)
            stop = step < last and preemption.noticed()
            self.profiler.after(step, self.throughput, final=stop or step == last)
            if stop or step == last or step % settings.checkpoint_every == 0:
                self.throughput.wait()
                if step % settings.log_every == 0:
                    self.log(step)
                self.save(step, preemption, stop)
                stop = step < last and preemption.noticed()
                if step < last and not stop and (reason := self.finished()):
                    say(f"ends at update {step}: {reason}")
                    break
            if stop:
                break
        self.monitor.stop()
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
        self.monitor.close()


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Trains `config` in `workdir`; called again after a stop, it continues.

    On SIGTERM or SIGHUP the update under way is finished and saved; then it returns, as when all is done. Likewise on
    Ctrl-C, but that it ends the process with status 130 then.

    Raises InputError for bad input. When another process of the run has died, this one ends: distributed.others_alive.
    """
    with contextlib.closing(Throughput()) as throughput, Preemption() as preemption:
        with distributed.others_alive(), throughput.phase("start-up"):
            ready = before_training(config, workdir)
            trainer = Trainer(ready.experiment, workdir, throughput, ready.left_out, ready.clip_units)
        with contextlib.closing(trainer), distributed.others_alive():
            if reason := trainer.finished():
                return say(f"there is nothing to do: {reason}")
            with throughput.phase("start-up"):
                trainer.load()
            preemption.hold()
            stopped = trainer.run(preemption)
    if stopped and preemption.status:
        sys.exit(preemption.status)
