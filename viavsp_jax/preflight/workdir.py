"""Whether the work folder can be written, has room for the checkpoints, and fits what is in it already."""

import dataclasses
import json
import os
import shutil

import jax
from etils import epath

from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.compatibility import check_continues, check_fits
from viavsp_jax.experiment import Experiment
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.run_settings import Settings
from viavsp_jax.runtime.atomic import check_writable
from viavsp_jax.runtime.errors import InputError, check_all

# Beside checkpoints: what an evaluation writes of a clip, into hypotheses and reports, and room for curves.
_CLIP_BYTES, _CURVES_BYTES = 1_000, 2**20


@dataclasses.dataclass(frozen=True)
class Begun:
    """What a work folder holds of a run."""

    step: int | None  # of the newest checkpoint
    count: int  # of checkpoints


def check_folder(workdir: epath.PathLike) -> epath.Path:
    """The work folder. Raises InputError if nothing can be written, read and deleted there."""
    check_writable(workdir, "--workdir", folder=True)
    return epath.Path(workdir)


def checkpoint_bytes(experiment: Experiment) -> int:
    """What one checkpoint takes: trained weights and the optimizer's state."""
    optimizer, _ = make_optimizer(experiment.settings.optimizer)
    state = jax.eval_shape(optimizer.init, experiment.trainable)
    leaves = jax.tree.leaves((experiment.trainable, state, experiment.batch_stats))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def check_begun(workdir: epath.Path, experiment: Experiment) -> Begun:
    """What there is to go on from. Raises InputError if the run cannot; every process has to ask."""
    checkpoints = Checkpoints(workdir)
    try:
        if (step := checkpoints.latest_step()) is not None:
            config = json.loads(experiment.config)
            check_all(
                [
                    lambda: check_fits(checkpoints, step, experiment.fits),
                    lambda: check_continues(checkpoints, step, config),
                ]
            )
        return Begun(step, len(checkpoints.steps()))
    finally:
        checkpoints.close()


def check_room(workdir: epath.Path, settings: Settings, size: int, begun: Begun, clips: int) -> float | None:
    """The bytes that are free; None in a bucket. Raises InputError if there is no room for all that will be written.

    That is the results of so many `clips`, and checkpoints of `size` bytes: the newest ones, the best, and the one that
    is being written.
    """
    if "://" in os.fspath(workdir):
        return None
    place = os.path.abspath(workdir)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    keep = settings.training.checkpoint_keep
    if begun.step is not None and begun.step >= settings.training.updates:
        return free
    needed = size * max(1, keep + 2 - begun.count) + clips * _CLIP_BYTES + _CURVES_BYTES
    if free < needed:
        raise InputError(
            f"--workdir {os.fspath(workdir)}: {free / 1e6:,.1f} MB are free, expected {needed / 1e6:,.1f} MB for "
            f"{keep} + 2 checkpoints of {size / 1e6:,.1f} MB and results: free space, take another disk, or lower "
            "config.checkpoint.keep"
        )
    return free
