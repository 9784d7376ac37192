"""Training that is killed: it ends as one that is not, bit for bit, and nothing is left behind.

tests/stress/soak.py does the same for hours, with kills at the start, between saves and by SIGTERM as well; after
SIGTERM it goes on in test_preemption.py.
"""

import json
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import command, small_config
from without_torch import without_torch

from tests.stress.interruptions import interrupted
from viavsp_jax import experiment, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.evaluation.report.events import read_curves
from viavsp_jax.integrity import checksum

UPDATES = 16


@pytest.fixture(scope="module")
def config(folders):
    config = small_config(*folders)
    config.updates, config.log_every, config.checkpoint.every = UPDATES, 1, 4
    config.checkpoint.keep = 2
    return config


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The work folder of a run without a stop, with all its checkpoints."""
    workdir, config = tmp_path_factory.mktemp("whole"), config.copy_and_resolve_references()
    config.checkpoint.keep = UPDATES
    train.train(config, workdir)
    return workdir


def curves(workdir: pathlib.Path) -> dict[str, dict[int, float]]:
    """What a run computed at each update."""
    found = read_curves(workdir / "tensorboard")
    return {name: curve for name, curve in found.items() if name.startswith("train/")}


def test_killed_while_it_saves_it_ends_as_without(config, whole, tmp_path):
    """The worst moment of all, when there is something to go on from."""
    workdir = tmp_path / "work"
    shutil.copytree(whole / "checkpoints" / "4", workdir / "checkpoints" / "4")
    run = without_torch(command(config, workdir, updates=UPDATES))
    log = interrupted(run, workdir, ["save"], seconds=0, rng=random.Random(0))
    assert log.kills == {"save": 1} and log.half_written == 1, log
    assert "continuing from update 4 in" in (tmp_path / "work.log").read_text(encoding="utf-8")
    after = {name: {step: x for step, x in curve.items() if step > 4} for name, curve in curves(whole).items()}
    assert curves(workdir) == after and len(after["train/loss"]) == UPDATES - 4
    weights = experiment.load_experiment(config).trainable
    ends = [Checkpoints(folder).restore_trainable(UPDATES, weights) for folder in (workdir, whole)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert all(path.name.isdecimal() for path in (workdir / "checkpoints").iterdir()), "half a checkpoint is left"


@pytest.mark.full
def test_one_of_two_processes_is_killed_and_one_goes_on(config, whole, tmp_path, capsys):
    """The other one ends with a sentence. Half as many processes and devices go on with the same clips."""
    workdir = tmp_path / "work"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with open(tmp_path / "second", "w", encoding="utf-8") as file:
        run = [
            *without_torch(command(config, workdir)),
            f"--coordinator=localhost:{port}",
            "--processes=2",
            f"--config.updates={UPDATES}",
        ]
        processes = [
            subprocess.Popen([*run, f"--process={number}"], stderr=stderr, text=True)
            for number, stderr in enumerate((subprocess.PIPE, file))
        ]
        text = ""
        for line in processes[0].stderr:
            text += line
            if "update 8: validation loss" in line:
                processes[1].kill()
    assert processes[0].wait(timeout=200) == 2, text
    assert "Traceback" not in text
    assert re.search("error: process 0 of 2 cannot go on, another one has died .* start all of them again", text), text
    saved = Checkpoints(workdir).latest_step()
    assert saved >= 4
    train.train(config, workdir)
    assert f"continuing from update {saved} in" in capsys.readouterr().err
    # On other devices the order of sums differs: 6e-7 was seen.
    for name in ("train/loss", "train/utterances_per_update"):
        found, expected = (curves(folder)[name] for folder in (workdir, whole))
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def test_a_damaged_checkpoint_is_refused(config, whole):
    llm, shards = config.llm.path, config.data.path
    run = without_torch([sys.executable, "-m", "damaged_run", llm, shards, str(whole), str(UPDATES)])
    places = {"PYTHONPATH": f"tests/helpers:.:{os.environ['PYTHONPATH']}"}
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | places)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 15
    for damage, sentence in found.items():
        words = (
            rf"checkpoints/{UPDATES} cannot be read \(.*\), expected a checkpoint as it was saved: .* go on from \d+$"
        )
        assert re.search(words, sentence), (damage, sentence)


def test_checksums_see_every_number_and_no_device():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(3, 8, 5)).astype(np.float32), "b": {"c": np.int32(7), "d": rng.normal(size=64)}}
    tree["b"]["d"] = tree["b"]["d"].astype(jnp.bfloat16)
    expected = checksum(tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for index in np.ndindex(leaf.shape):
            other = np.array(leaf)
            other[index] = np.nextafter(other[index], np.inf) if other.dtype == np.float32 else other[index] + 1
            changed = jax.tree_util.tree_map_with_path(
                lambda p, x, path=path, other=other: other if p == path else x, tree
            )
            assert checksum(changed) != expected, (path, index)
    assert checksum(tree | {"a": tree["a"][::-1]}) != expected, "order counts"
