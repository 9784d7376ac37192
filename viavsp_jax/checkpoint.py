"""Checkpoints of training: trainable weights, the data iterator and the config. The only file with orbax in it."""

import contextlib
import datetime
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from viavsp_jax.data.pipeline import TrainingBatches
from viavsp_jax.integrity import check_arrays, sum_of
from viavsp_jax.runtime.atomic import check_writable
from viavsp_jax.runtime.buckets import bucket_trouble
from viavsp_jax.runtime.errors import InputError, disk_trouble
from viavsp_jax.runtime.paths import key_value_store
from viavsp_jax.state import TrainState

Tree = dict[str, Any]


def _absolute(path: epath.Path) -> epath.Path:
    """What Orbax asks for; a bucket's address is absolute, though epath would put the working folder before it."""
    return path if "://" in os.fspath(path) else path.absolute()


class Checkpoints:
    """Training checkpoints of a work folder: state, place in the data and config, together or not at all.

    Kept are the last `keep` and the best, that with the highest score; what a process that was killed left half
    written is removed. Without `keep` they are only read: a training may be under way.
    """

    def __init__(self, workdir: epath.PathLike, keep: int | None = None):
        self.folder = _absolute(epath.Path(workdir)) / "checkpoints"
        key_value_store(self.folder)  # refuses what Orbax would not find again
        if keep is not None and "://" in os.fspath(self.folder):
            check_writable(self.folder, folder=True)
        best = BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            best_fn=_score,
            create=keep is not None,
            cleanup_tmp_directories=keep is not None,
            # Called when all is written, before the folder gets its name and an older one is removed.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._check_written),
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except ValueError as error:  # JSON that is none
            raise InputError(
                f"{self.folder}: the metrics of a checkpoint in it cannot be read ({_first_line(error)}), "
                "expected whole files: move the damaged checkpoint away"
            ) from error

    def save(
        self,
        state: TrainState,
        data: TrainingBatches | None,
        config: str,
        fits: dict[str, Any],
        run_info: dict[str, Any],
        metrics: dict[str, float],
        units: str | None = None,
    ) -> None:
        """Starts saving in the background; raises InputError when the disk is full, also of the save before.

        Args:
          state, data: what a restart needs; without `data` a restart begins with the first batch.
          config: the run's config as JSON.
          fits: what the trained weights fit: sizes of the adapters and the frozen weights' hash, by name.
          run_info: what they were made by (see runtime/run_info.py); `saved`, the time in UTC, is added.
          metrics: of the validation split, with its `accuracy`; 0 where it is not known, and any other is better. The
            best checkpoint has the highest `score` or, where there is none, accuracy; the last of several. `not_better`
            counts the validations since that score was reached first.
          units: those of the CTC head, as JSON; None without one.
        """
        arrays = {"trainable": state.trainable, "optimizer": {"step": state.step, "state": state.opt_state}}
        if state.batch_stats:
            arrays["batch_stats"] = state.batch_stats
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        texts = {"config": json.loads(config), "fits": fits, "origin": {"saved": now} | run_info}
        if data is not None:
            texts["data"] = data.places()
        if units is not None:
            texts["units"] = json.loads(units)
        texts["sums"] = {name: sum_of(name, item) for name, item in (arrays | texts | {"metrics": metrics}).items()}
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items |= {name: ocp.args.JsonSave(text) for name, text in texts.items()}
        with self._written():
            self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
            self._manager.wait_until_finished()
            shapes = {name: [leaf.shape for leaf in jax.tree.leaves(tree)] for name, tree in arrays.items()}
            self._saving = int(state.step), shapes, texts | {"metrics": metrics}
            self._manager.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics)

    def _check_written(self) -> None:
        """Raises OSError unless what is being saved can be read back: then it gets no name and the last one stays."""
        step, shapes, texts = self._saving
        folder = self.folder / f"{step}{ocp.utils.TMP_DIR_SUFFIX}"
        folder = folder if folder.exists() else self.folder / str(step)  # in a bucket, where names are not changed
        try:
            for name, expected in shapes.items():
                check_arrays(folder / name, expected)
            for name, text in texts.items():
                file = folder / name / ("metrics" if name == "metrics" else "metadata")
                if sum_of(name, json.loads(file.read_bytes())) != sum_of(name, text):
                    raise ValueError("it is another text")
        except Exception as error:
            raise OSError(errno.EIO, f"its {name} cannot be read back: {_first_line(error)}") from error

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int:
        """The step of the checkpoint with the best score; InputError when there is none.

        Or when a checkpoint's metrics are damaged: it might be the best.
        """
        for step in self.steps():
            self.accuracy(step)
        best = self._manager.best_step()
        if best is None:
            raise InputError(f"{self.folder} holds no checkpoint: train first, or give another --workdir")
        return best

    def best_score(self) -> tuple[float, int]:
        """The score of the best checkpoint, and how many validations since were not better; (-1, 0) without any."""
        if (latest := self.latest_step()) is None:
            return -1.0, 0
        best = self.best_step()
        with self._read(latest):
            return _score(self._manager.metrics(best)), int(self._manager.metrics(latest).get("not_better", 0))

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
        """The validation accuracy that was saved at `step`; InputError when it is damaged."""
        with self._read(step):
            if (metrics := self._manager.metrics(step)) is None:
                raise ValueError("its metrics are missing")
            return self._as_saved(step, "metrics", metrics)["accuracy"]

    def steps(self) -> list[int]:
        """The steps of all checkpoints there are."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, state: TrainState, data: TrainingBatches | None) -> TrainState:
        """The state saved at `step`, in the shapes and shardings of `state`; moves `data` to where it was.

        The devices and processes may be others than those that saved. A checkpoint that was saved without `data`, as
        convert.from_reference does, leaves it where it is.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        arrays = {"trainable": abstract.trainable, "optimizer": {"step": abstract.step, "state": abstract.opt_state}}
        if state.batch_stats:
            arrays["batch_stats"] = abstract.batch_stats
        found = self._restore_items(step, arrays)
        if data is not None and self.knows_place(step):
            data.move(self._read_json(step, "data"))
        optimizer = found["optimizer"]
        return TrainState(optimizer["step"], found["trainable"], optimizer["state"], found.get("batch_stats", {}))

    def restore_trainable(self, step: int, abstract: Tree) -> Tree:
        """Only the trained weights saved at `step`, in the shapes and shardings of `abstract`."""
        return self._restore_items(step, {"trainable": abstract})["trainable"]

    def restore_batch_stats(self, step: int, abstract: Tree) -> Tree:
        """Only the statistics of the encoder's BatchNorm; {} when `abstract` is, as without an encoder."""
        return self._restore_items(step, {"batch_stats": abstract})["batch_stats"] if abstract else {}

    def _restore_items(self, step: int, abstract: dict[str, Tree]) -> dict[str, Tree]:
        """Trees by the names they were saved under, in these shapes and shardings, and with the sums they had."""
        items = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()})
        with self._read(step):
            restored = self._manager.restore(step, args=items)
            return {name: self._as_saved(step, name, restored[name]) for name in abstract}

    def knows_place(self, step: int) -> bool:
        """Whether a checkpoint tells which clips were read; those of convert.from_reference do not."""
        return (self.folder / str(step) / "data").exists()

    def restore_config(self, step: int) -> dict[str, Any]:
        """The config a checkpoint was trained with."""
        return self._read_json(step, "config")

    def restore_fits(self, step: int) -> dict[str, Any]:
        """What the trained weights fit."""
        return self._read_json(step, "fits")

    def weights_sum(self, step: int) -> int | None:
        """A number that tells the trained weights of `step` from others; None if an earlier version wrote it."""
        saved = self._read_json(step, "sums") if (self.folder / str(step) / "sums").exists() else {}
        return saved.get("trainable")

    def restore_run_info(self, step: int) -> dict[str, Any]:
        """What a checkpoint was made by; {} if an earlier version wrote it."""
        return self._read_json(step, "origin") if (self.folder / str(step) / "origin").exists() else {}

    def restore_units(self, step: int) -> str | None:
        """The units of its CTC head, as JSON; None without one, or if an earlier version wrote it."""
        if not (self.folder / str(step) / "units").exists():
            return None
        return json.dumps(self._read_json(step, "units"), ensure_ascii=False)

    def _read_json(self, step: int, name: str) -> dict[str, Any]:
        with self._read(step):
            text = self._manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.JsonRestore()}))[name]
            return text if name == "sums" else self._as_saved(step, name, text)

    def _as_saved(self, step: int, name: str, item: Any) -> Any:
        """The item, which is to have the sum it had; ValueError otherwise. Earlier versions wrote none, or fewer."""
        if (self.folder / str(step) / "sums").exists():
            saved = self._read_json(step, "sums")
            if name in saved and sum_of(name, item) != saved[name]:
                raise ValueError(f"{name} is not what was saved")
        return item

    def _check_room(self, needed: int) -> None:
        """Raises OSError when the disk has less than so many bytes: of what Orbax meets its threads print stacks."""
        if "://" not in os.fspath(self.folder) and (free := shutil.disk_usage(self.folder).free) < needed:
            reason = f"it takes {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {reason}")

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Raises InputError when a disk without room is what keeps a checkpoint from being written."""
        try:
            yield
        except Exception as error:
            if (trouble := disk_trouble(error)) is None:
                raise
            self._manager.reload()  # it counts on what it was about to delete
            steps = self.steps()
            kept = f"the last one is of update {steps[-1]}" if steps else "there is none yet"
            raise InputError(
                f"{self.folder}: a checkpoint could not be written ({trouble}), expected a disk with room for it; "
                f"{kept}, from which the same command goes on"
            ) from error

    @contextlib.contextmanager
    def _read(self, step: int) -> Iterator[None]:
        """Raises InputError when a checkpoint is damaged."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # Orbax wraps what it meets in plain ones
            if disk_trouble(error) or bucket_trouble(error):
                raise
            others = [other for other in self.steps() if other != step]
            remedy = f"to go on from {max(others)}" if others else "to begin anew"
            raise InputError(
                f"{self.folder / str(step)} cannot be read ({_first_line(error.__cause__ or error)}), "
                "expected a checkpoint as it was "
                f"saved: restore its files, or move that folder away {remedy}"
            ) from error

    def wait(self) -> None:
        """Returns when no save is under way; raises InputError when the disk is full."""
        with self._written():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.close()


def _score(metrics: Mapping[str, float]) -> float:
    return metrics.get("score", metrics["accuracy"])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
