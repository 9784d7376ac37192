"""Whether a checkpoint fits a model, and whether a training can go on from it."""

import json
from collections.abc import Mapping
from typing import Any

from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.runtime.errors import InputError, InputErrors
from viavsp_jax.runtime.run_info import flat
from viavsp_jax.settings import ORDER_OF_DATA, changes, completed

HAS_CTC = "config.ctc.weight above 0"  # among what weights fit


def check_fits(checkpoints: Checkpoints, step: int, fits: dict[str, Any]) -> None:
    """InputErrors that lists what in `fits` has another value than it had for `Checkpoints.save` at `step`."""
    # Earlier versions recorded less there; all settings are in the config, or had what is now their default.
    saved = json.loads(completed(checkpoints.restore_config(step)).to_json())
    trained = {f"config.{name}": value for name, value in flat(saved).items()}
    trained |= {HAS_CTC: saved["ctc"]["weight"] > 0} | checkpoints.restore_fits(step)
    if problems := [
        f"checkpoint {step} in {checkpoints.folder} was trained with {name} {trained[name]}, not {value}"
        for name, value in fits.items()
        if name in trained and trained[name] != value
    ]:
        raise InputErrors(problems)


def check_continues(checkpoints: Checkpoints, step: int, config: Mapping[str, Any]) -> None:
    """InputError when a run with `config` cannot go on from `step`.

    Its batches have to go on where they were, and its checkpoints to be compared with those that are there.
    """
    saved = completed(checkpoints.restore_config(step))
    scored_by = ("checkpoint.best_by",)
    if saved.checkpoint.best_by == "wer":
        scored_by += ("samples", "evaluate.decoding.compression")
    for name, before, now in changes(saved, config, scored_by):
        raise InputError(
            f"checkpoint {step} in {checkpoints.folder} was saved with config.{name} {before}, not {now}: continue "
            "with the same, or the best would be sought among scores of two kinds"
        )
    if not checkpoints.knows_place(step):
        return
    if differing := changes(checkpoints.restore_config(step), config, ORDER_OF_DATA):
        words = ", ".join(f"config.{name} {before}, not {now}" for name, before, now in differing)
        raise InputError(
            f"checkpoint {step} in {checkpoints.folder} was saved with {words}: continue with the same, or the clips "
            "that are read next would not be those that were not read yet"
        )
