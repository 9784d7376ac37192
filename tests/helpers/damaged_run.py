"""Run by test_resume.py: what is said of a checkpoint of which a file is cut off, has a wrong bit, or is missing.

    python tests/helpers/damaged_run.py LLM SHARDS WORKDIR STEP

Prints, as JSON, for each item and damage what `Checkpoints` raises, or whether it gives what was saved. In a process of
its own: a failed read of Orbax leaves coroutines behind, which break what comes later.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import jax
import numpy as np
from small_run import small_config

from viavsp_jax import experiment, update
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.compatibility import check_continues, check_fits
from viavsp_jax.data import pipeline
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def main() -> None:
    llm, shards, workdir, step = sys.argv[1:]
    config, found = small_config(pathlib.Path(llm), pathlib.Path(shards)), {}
    exp = experiment.load_experiment(config)
    state = update.abstract_state(exp, make_optimizer(read_settings(config).optimizer)[0])
    expected = jax.tree.leaves(Checkpoints(workdir).restore(int(step), state, None))
    for item in ("trainable", "optimizer", "config", "fits", "data"):
        for damage in (cut, flip, pathlib.Path.unlink):
            with tempfile.TemporaryDirectory() as folder:
                shutil.copytree(pathlib.Path(workdir) / "checkpoints", pathlib.Path(folder) / "checkpoints")
                files = (
                    path for path in (pathlib.Path(folder) / "checkpoints" / step / item).rglob("*") if path.is_file()
                )
                damage(max(files, key=lambda path: path.stat().st_size))
                batches, checkpoints = (
                    pipeline.training_batches(exp.settings.data, exp.prompt),
                    Checkpoints(folder),
                )
                try:
                    check_fits(checkpoints, int(step), exp.fits)
                    check_continues(checkpoints, int(step), config)
                    leaves = jax.tree.leaves(checkpoints.restore(int(step), state, batches))
                    same = all(map(np.array_equal, leaves, expected))
                    found[f"{item} {damage.__name__}"] = "as it was" if same else "something else"
                except InputError as error:
                    found[f"{item} {damage.__name__}"] = str(error)
                batches.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
