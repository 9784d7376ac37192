"""Two processes that train and decode together, against one process on the same mesh; and how processes meet."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from devices import with_devices
from ports import free_port
from small_run import WIDTH, make_example, make_shards, small_config
from tensorboard_events import scalars
from without_torch import without_torch

from viavsp_jax import experiment, sharding
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import records
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.prepare.demo.sentences import sample_sentences
from viavsp_jax.runtime import distributed
from viavsp_jax.runtime.errors import InputError


def start(folder, config, devices: int, *flags: str) -> subprocess.Popen:
    """One process of tests/helpers/distributed_run.py, which is given `config` as a user would give it."""
    folder.mkdir(exist_ok=True)
    settings = {
        **{f"data.{name}": config.data[name] for name in ("path", "train", "feature_width", "rows")},
        **{f"data.row.{name}": value for name, value in config.data.row.items()},
        **{name: config[name] for name in ("updates", "log_every")},
        **{f"evaluate.{name}": config.evaluate[name] for name in ("names", "rows", "bucket")},
        "evaluate.decoding.max_new_tokens": config.evaluate.decoding.max_new_tokens,
        "llm.path": config.llm.path,
        "ctc.weight": config.ctc.weight,
        "optimizer.warmup_updates": config.optimizer.warmup_updates,
        "optimizer.decay_updates": config.optimizer.decay_updates,
        "optimizer.eps": config.optimizer.eps,
        **{f"checkpoint.{name}": config.checkpoint[name] for name in ("every", "keep")},
        "mesh.data": config.mesh.data,
        "mesh.fsdp": config.mesh.fsdp,
    }
    command = [*without_torch([sys.executable, "-m", "distributed_run", str(folder)]), "--config=configs/demo.py"]
    command += [f"--workdir={folder / 'whole'}", *(f"--config.{name}={value}" for name, value in settings.items())]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *flags], env=with_devices(devices), **pipes)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Waits, and checks that the process is done; what it wrote to standard output and standard error."""
    try:
        out, err = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def config(folders, tmp_path_factory):
    """The small run with four rows on four devices; of 9 validation clips, two a row, the first row gets one more."""
    shards = tmp_path_factory.mktemp("distributed")
    folder, rng = make_shards(shards / "av_clean"), np.random.default_rng(1)
    examples = [make_example(rng, f"valid{i}", text) for i, text in enumerate(sample_sentences(1, 9, "valid"))]
    records.write_shard(records.shard_path(folder, "valid", 0, 1), examples)
    records.write_metadata(folder, WIDTH, ["train", "valid", "test"])
    config = small_config(folders[0], shards)
    config.data.rows, config.data.row.clips = 4, 2
    config.checkpoint.keep = 2  # the first is gone on from
    config.mesh.data, config.mesh.fsdp = 2, 2
    # So that Adam makes no full step of a gradient that is little more than rounding.
    config.optimizer.eps = 1e-5
    return config


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """The folders of one process and of two, with the runs `whole` and, of two, `parts`; what they printed."""
    folder = tmp_path_factory.mktemp("runs")
    coordinator = f"--coordinator=localhost:{free_port()}"
    two = [
        start(folder / "two", config, 2, coordinator, "--processes=2", f"--process={process}") for process in range(2)
    ]
    printed = [finish(process) for process in two]
    return folder / "one", folder / "two", finish(start(folder / "one", config, 4)), printed


def curves(folder):
    """What the run computed, not how fast."""
    found = scalars(folder / "tensorboard")
    return {name: value for name, value in found.items() if name.split("/")[0] in ("train", "valid")}


def weights(config, folder):
    one_device = config.copy_and_resolve_references()
    one_device.mesh.data = one_device.mesh.fsdp = 1
    abstract = experiment.load_experiment(one_device).trainable
    return jax.device_get(Checkpoints(folder).restore_trainable(config.updates, abstract))


def test_two_processes_train_as_one_does(config, runs):
    one, two, *_ = runs
    expected, found = curves(one / "whole"), curves(two / "whole")
    assert expected.keys() == found.keys() >= {"train/loss", "valid/loss", "valid/accuracy"}
    for name, points in expected.items():
        assert points.keys() == found[name].keys() == {2, 4}
        # The same program on the same mesh: only the order in which sums over the mesh are added up differs.
        np.testing.assert_allclose(list(found[name].values()), list(points.values()), rtol=1e-6, err_msg=name)
    assert expected["train/loss"][4] < expected["train/loss"][2]
    new = experiment.load_experiment(small_config(config.llm.path, config.data.path)).init_trainable()
    trees = weights(config, two / "whole"), weights(config, one / "whole"), new
    for a, b, before in zip(*map(jax.tree.leaves, trees), strict=True):
        moved = np.linalg.norm(b - before)
        # By the norm, not weight by weight: where a gradient is nearly zero, Adam makes a larger step of its rounding.
        assert moved > 0.01 and np.linalg.norm(a - b) < 1e-5 * moved


def test_a_stop_changes_nothing(config, runs):
    folder = runs[1]
    whole = curves(folder / "whole")
    after = {name: {step: x for step, x in points.items() if step > 2} for name, points in whole.items()}
    assert curves(folder / "parts") == after
    for a, b in zip(*(jax.tree.leaves(weights(config, folder / name)) for name in ("whole", "parts")), strict=True):
        assert np.array_equal(a, b)


def test_two_processes_decode_as_one_does(config, runs):
    one, two, *_ = runs
    tables, reports = (
        [(place / name).read_text() for place in (last_folder(folder / "whole") for folder in (one, two))]
        for name in ("av_clean.tsv", "report.json")
    )
    assert tables[0] == tables[1]
    # Their weights are not the same bit by bit.
    reports = [re.sub(r'"weights": \d+', "", report) for report in reports]
    assert reports[0] == reports[1] and json.loads((two / "whole/report.json").read_text())["av_clean"]["clips"] == 5


def test_one_process_speaks(runs):
    *_, alone, (first, second) = runs
    assert json.loads(first[0].splitlines()[-1]) == {"processes": 2, "devices": 4}
    for out, err in (alone, first):
        assert "mean WER %" in out and "update 4: validation loss" in err and "%|" in err
    out, err = second
    assert "WER" not in out and "decoding" not in out
    assert "update" not in err and "%|" not in err, "no messages and no progress bars"


def test_rows_that_the_mesh_does_not_divide():
    mesh = jax.sharding.AbstractMesh((2, 3, 4), sharding.AXES)
    sharding.check_rows(mesh, 12, "config.data.rows")
    with pytest.raises(
        InputError, match="^config.data.rows is 8, expected a multiple of 6: the mesh .*'tensor': 4.* cuts"
    ):
        sharding.check_rows(mesh, 8, "config.data.rows")


def test_part_of_the_flags_and_wrong_ones():
    for given, what in (
        (("localhost:1234", 2, None), "--coordinator, --processes and --process belong together"),
        ((None, None, 1), "--coordinator, --processes and --process belong together"),
        (("localhost", 2, 0), "--coordinator is localhost, expected host:port"),
        (("localhost:1234", 2, 2), "--process is 2, expected 0 to 1, as --processes is 2"),
        (("localhost:1234", 2, -1), "--process is -1, expected 0 to 1"),
    ):
        with pytest.raises(InputError, match=what):
            distributed.initialize(*given)


@pytest.mark.parametrize(
    ("platforms", "variables", "asks"),
    [
        ("tpu,cpu", {}, True),  # a TPU VM, whose metadata knows the hosts
        ("tpu,cpu", {"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ("tpu,cpu", {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True),
        ("tpu,cpu", {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_COORDINATOR_ADDRESS": "b"}, True),  # several slices
        ("tpu,cpu", {"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ("cpu", {"TPU_WORKER_HOSTNAMES": "a,b"}, False),
        (None, {}, False),
    ],
)
def test_only_hosts_of_a_tpu_slice_look_for_others(monkeypatch, platforms, variables, asks):
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", platforms)
        distributed.initialize()
    finally:
        jax.config.update("jax_platforms", before)
    assert calls == [()] * asks
