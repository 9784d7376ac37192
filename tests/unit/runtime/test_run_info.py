"""What a checkpoint is made by: recorded as it is, compared when a run goes on, shown to whom asks."""

import json
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from small_run import make_shards, small_config

import viavsp_jax
from viavsp_jax import experiment, main, sharding
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import pipeline
from viavsp_jax.describe import describe
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime import run_info
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.state import TrainState


@pytest.fixture
def config(folders):
    return small_config(*folders)


def info_of(config):
    settings = read_settings(config)
    return run_info.run_info(sharding.make_mesh(settings.mesh), pipeline.shard_folders(settings.data))


@pytest.fixture
def workdir(config, tmp_path):
    """With checkpoints of updates 2 and 4, the latter saved in a hurry."""
    made_by = run_info.run_info(
        sharding.make_mesh(read_settings(config).mesh), pipeline.shard_folders(read_settings(config).data)
    )
    fits = experiment.load_experiment(config).fits
    checkpoints = Checkpoints(tmp_path / "work", keep=2)
    for step, accuracy in ((2, 0.5), (4, 0.0)):
        state = TrainState(jnp.int32(step), {"w": jnp.arange(4.0) + step}, ())
        checkpoints.save(state, None, config.to_json(), fits, made_by, {"accuracy": accuracy})
    checkpoints.close()
    return tmp_path / "work"


def test_what_is_recorded(config):
    found = run_info.run_info(
        sharding.make_mesh(read_settings(config).mesh), pipeline.shard_folders(read_settings(config).data)
    )
    root = run_info._ROOT
    if (root / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
        assert found["code"]["git"] == head.stdout.strip()
    assert len(found["code"]["sha256"]) == 64
    assert found["packages"]["numpy"] == np.__version__ and "orbax-checkpoint" in found["packages"]
    assert "gradio" not in found["packages"], "training does not need it"
    assert found["devices"] == {
        "kind": "cpu", "count": 1, "processes": 1, "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found


def test_without_git_the_hash_of_the_code_is_left(tmp_path, monkeypatch):
    shutil.copytree(viavsp_jax.__path__[0], tmp_path / "viavsp_jax", ignore=shutil.ignore_patterns("demo_models"))
    monkeypatch.setattr(run_info, "_ROOT", tmp_path)
    before = run_info._source_hash()
    assert run_info._git("rev-parse", "HEAD") is None and run_info._changes() is None
    with (tmp_path / "viavsp_jax" / "train.py").open("a") as file:
        file.write("# another line\n")
    assert run_info._source_hash() != before


def test_fingerprints_tell_data_apart_and_not_where_they_lie(tmp_path):
    first, same, other = (make_shards(tmp_path / name / "av_clean", seed=len(name)) for name in ("a", "b", "cc"))
    assert run_info.fingerprint(first) == run_info.fingerprint(same) != run_info.fingerprint(other)
    (first / "provenance.json").write_text('{"kmeans": "0", "paths": {"kmeans": "/here"}}')
    (same / "provenance.json").write_text('{"kmeans": "0", "paths": {"kmeans": "/there"}}')
    assert run_info.fingerprint(first) == run_info.fingerprint(same)
    (same / "provenance.json").write_text('{"kmeans": "1", "paths": {"kmeans": "/here"}}')
    assert run_info.fingerprint(first) != run_info.fingerprint(same)
    for damaged in ("", "[1]", "[" * 100_000):
        (same / "provenance.json").write_text(damaged)
        assert len(run_info.fingerprint(same)) == 64
    assert run_info.fingerprint(tmp_path / "none") == ""


def test_what_changed_is_said(config):
    now = run_info.run_info(
        sharding.make_mesh(read_settings(config).mesh), pipeline.shard_folders(read_settings(config).data)
    )
    before = json.loads(json.dumps(now | {"saved": "2026-01-01T00:00:00+00:00", "python": "3.10.1"}))
    before["data"]["av_clean"] = "another"
    before["devices"]["count"] = 8
    assert run_info.differences(now, now) == run_info.differences({}, now) == []
    assert run_info.differences(before, now) == [
        f"python was 3.10.1, is {now['python']}",
        f"data.av_clean was another, is {now['data']['av_clean']}",
    ]


def test_describe(config, workdir, capsys, tmp_path):
    argv = ["main", "--mode=describe", f"--workdir={workdir}", f"--output={tmp_path / 'about.json'}"]
    flags.FLAGS.unparse_flags()
    flags.FLAGS(argv)
    main.main(["main"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["2", "0.5000"] and lines[1].endswith("best")
    assert lines[2].split()[:2] == ["4", "-"] and lines[2].endswith("newest")
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "update 4, made by" in text and f"packages.numpy {np.__version__}" in text
    assert f"data.path {config.data.path}" in text and "lora.rank 16" in text
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["best"] == 2 and [one["update"] for one in about["checkpoints"]] == [2, 4]
    made_by = run_info.run_info(
        sharding.make_mesh(read_settings(config).mesh), pipeline.shard_folders(read_settings(config).data)
    )
    assert about["checkpoints"][0]["origin"] == made_by | {"saved": about["checkpoints"][0]["origin"]["saved"]}
    assert about["checkpoints"][0]["fits"] == experiment.load_experiment(config).fits
    assert "language model sha256 " + about["checkpoints"][0]["fits"]["language model sha256"] in text
    assert about["checkpoints"][0]["config"] == json.loads(config.to_json())


def test_a_folder_without_checkpoints(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint: train first"):
        describe(tmp_path)
    assert not (tmp_path / "checkpoints").exists(), "a look changes nothing"
