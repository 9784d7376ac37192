"""Checkpoints of training: what learns, the data iterator and the config. The only file with orbax in it."""

import json
import os
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from viavsp_jax.errors import InputError
from viavsp_jax.state import TrainState

Tree = dict[str, Any]


def _absolute(path: epath.Path) -> epath.Path:
    """What Orbax asks for; a bucket's address is absolute, though epath would put the working folder before it."""
    return path if "://" in os.fspath(path) else path.absolute()


class Checkpoints:
    """Training checkpoints of a work folder: state, data iterator and config, together or not at all.

    Kept are the last `keep` and the one with the highest validation accuracy.
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 1):
        self.folder = _absolute(epath.Path(workdir)) / "checkpoints"
        best = BestN(get_metric_fn=lambda metrics: metrics["accuracy"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            best_fn=lambda metrics: metrics["accuracy"],
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(
        self,
        state: TrainState,
        data: grain.DatasetIterator | None,
        config: str,
        fits: dict[str, Any],
        metrics: dict[str, float],
    ) -> None:
        """Starts saving in the background.

        Args:
          state, data: what a restart needs; without `data` a restart begins with the first batch.
          config: the run's config as JSON.
          fits: what the learnt weights fit: sizes of the adapters and the frozen weights' hash, by name.
          metrics: of the validation split, with its `accuracy`; 0 where it is not known, and any other is better.
        """
        items = {
            "trainable": ocp.args.StandardSave(state.trainable),
            **({"batch_stats": ocp.args.StandardSave(state.batch_stats)} if state.batch_stats else {}),
            "optimizer": ocp.args.StandardSave({"step": state.step, "state": state.opt_state}),
            "config": ocp.args.JsonSave(json.loads(config)),
            "fits": ocp.args.JsonSave(fits),
        }
        if data is not None:
            items["data"] = grain.checkpoint.CheckpointSave(data)
        self._manager.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int:
        """The step of the checkpoint with the best validation accuracy; InputError when there is none."""
        best = self._manager.best_step()
        if best is None:
            raise InputError(f"{self.folder} holds no checkpoint: train first, or give another --workdir")
        return best

    def choose(self, which: str) -> int:
        """The step meant by `best`, `latest` or a number; InputError when there is no such checkpoint."""
        if which == "best":
            return self.best_step()
        steps = self._manager.all_steps()
        step = self.latest_step() if which == "latest" else int(which) if which.isdecimal() else None
        if step not in steps:
            raise InputError(f"{self.folder} holds no checkpoint {which}: expected best, latest or one of {steps}")
        return step

    def accuracy(self, step: int) -> float:
        """The validation accuracy that was saved at `step`."""
        return self._manager.metrics(step)["accuracy"]

    def check_fits(self, step: int, fits: dict[str, Any]) -> None:
        """InputError when anything in `fits` has another value than it had for `save` at `step`."""
        trained = self._manager.restore(step, args=ocp.args.Composite(fits=ocp.args.JsonRestore())).fits
        for name, value in fits.items():
            if trained.get(name) != value:
                raise InputError(
                    f"checkpoint {step} in {self.folder} was trained with {name} {trained.get(name)}, not {value}"
                )

    def check_data(self, step: int, rows: int) -> None:
        """InputError when batches of `rows` rows, read by as many processes as now, cannot go on where `step` was."""
        files = self.folder / str(step) / "data"
        if not files.exists():
            return
        processes, trained = len(list(files.glob("process_*"))), self.restore_config(step)["data"]["rows"]
        for name, saved, now in (("processes", processes, jax.process_count()), ("config.data.rows", trained, rows)):
            if saved != now:
                raise InputError(
                    f"checkpoint {step} in {self.folder} was saved with {name} {saved}, not {now}: continue with as "
                    "many, or the clips that are read next would not be those that were not read yet"
                )

    def restore(self, step: int, state: TrainState, data: grain.DatasetIterator | None) -> TrainState:
        """The state saved at `step`, in the shapes and shardings of `state`; moves `data` to where it was.

        A checkpoint that was saved without `data`, as convert.from_reference does, leaves it where it is.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        items = {
            "trainable": ocp.args.StandardRestore(abstract.trainable),
            "optimizer": ocp.args.StandardRestore({"step": abstract.step, "state": abstract.opt_state}),
        }
        if state.batch_stats:
            items["batch_stats"] = ocp.args.StandardRestore(abstract.batch_stats)
        if data is not None and (self.folder / str(step) / "data").exists():
            items["data"] = grain.checkpoint.CheckpointRestore(data)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        batch_stats = restored.batch_stats if state.batch_stats else {}
        return TrainState(restored.optimizer["step"], restored.trainable, restored.optimizer["state"], batch_stats)

    def restore_trainable(self, step: int, abstract: Tree) -> Tree:
        """Only the learnt weights saved at `step`, in the shapes and shardings of `abstract`."""
        return self._restore_item(step, "trainable", abstract)

    def restore_batch_stats(self, step: int, abstract: Tree) -> Tree:
        """Only the statistics of the encoder's BatchNorm; {} when `abstract` is, as without an encoder."""
        return self._restore_item(step, "batch_stats", abstract) if abstract else {}

    def _restore_item(self, step: int, name: str, abstract: Tree) -> Tree:
        items = self._manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.StandardRestore(abstract)}))
        return items[name]

    def restore_config(self, step: int) -> dict[str, Any]:
        """The config a checkpoint was trained with."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore())).config

    def wait(self) -> None:
        """Returns when no save is under way."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.close()
