"""Run by test_distributed.py in one process or in two: the same small runs on the same mesh of four CPU devices.

    python tests/helpers/distributed_run.py FOLDER FLAG …

FLAG … are those of the real command, which makes the first run and starts jax.distributed.
"""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from viavsp_jax import main, sharding
from viavsp_jax.evaluate import evaluate
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.sharding import local_rows
from viavsp_jax.train import train

ELSEWHERE = "the set-up has faults, which the first process lists"


def run(folder: pathlib.Path) -> None:
    """One run without a stop and its evaluation; with two processes also its second half, from the checkpoint there."""
    main.main(["main"])
    config = flags.FLAGS.config
    evaluate(config, folder / "whole")
    if jax.process_count() == 2:
        if jax.process_index() == 0:
            half = f"checkpoints/{config.updates // 2}"
            shutil.copytree(folder / "whole" / half, folder / "parts" / half)
        multihost_utils.sync_global_devices("the first half is there")
        train(config, folder / "parts")


def check_rows() -> None:
    """Each device gets its rows on meshes of any order of the devices, from a process that holds its own rows only."""
    devices, count = np.array(jax.devices()), 8
    meshes = {
        "in order": devices.reshape(4, 1, 1),
        "a process's rows are apart": devices[[0, 2, 1, 3]].reshape(2, 2, 1),
        "a row inside a process": devices.reshape(2, 1, 2),
        "a row across processes": devices.reshape(2, 2).T.reshape(1, 2, 2),
        "all rows on all devices": devices.reshape(1, 1, 4),
    }
    for name, order in meshes.items():
        mesh = Mesh(order, sharding.AXES)
        rows = np.array(local_rows(mesh, count))
        batch = sharding.put_batch(mesh, {"rows": np.stack([rows, rows + 100], 1)})["rows"]
        assert batch.shape == (count, 2), name
        whole = np.stack([np.arange(count), np.arange(count) + 100], 1)
        for shard in batch.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index], name)
        if jax.process_count() == 2:
            expected = {
                "in order": [[0, 1, 2, 3], [4, 5, 6, 7]],
                "a process's rows are apart": [[0, 1, 4, 5], [2, 3, 6, 7]],
                "a row inside a process": [[0, 1, 2, 3], [4, 5, 6, 7]],
            }.get(name, [list(range(8))] * 2)
            assert rows.tolist() == expected[jax.process_index()], name


def check_refusals(folder: pathlib.Path) -> None:
    """Rows that the mesh does not divide are refused before any work."""
    for setting, refusing in (("data", train), ("evaluate", evaluate)):
        config = flags.FLAGS.config.copy_and_resolve_references()
        config[setting].rows = 6
        try:
            refusing(config, folder / "refused")
        except InputError as error:
            first = refusing is evaluate or jax.process_index() == 0
            expected = f"config.{setting}.rows is 6, expected a multiple of 4" if first else ELSEWHERE
            assert str(error).startswith(expected), error
        else:
            raise AssertionError(setting)


def check_a_fault_of_one(folder: pathlib.Path) -> None:
    """What one process alone finds wrong keeps all from starting, and the first names it."""
    config = flags.FLAGS.config.copy_and_resolve_references()
    if jax.process_index() == jax.process_count() - 1:
        config.llm.path = str(folder / "nowhere")
    try:
        train(config, folder / "refused")
    except InputError as error:
        (sentence,) = error.sentences
        assert jax.process_index() == 0 or sentence == ELSEWHERE, sentence
        assert jax.process_index() or "nowhere/config.json does not exist" in sentence, sentence
        assert sentence.endswith(" (process 1)") == (jax.process_index() == 0 and jax.process_count() == 2), sentence
    else:
        raise AssertionError("one process would have trained alone")


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv.pop(1))
    flags.FLAGS(sys.argv)
    run(folder)
    check_rows()
    check_refusals(folder)
    check_a_fault_of_one(folder)
    print(json.dumps({"processes": jax.process_count(), "devices": jax.device_count()}))
