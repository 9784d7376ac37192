"""Work folders and exports that an earlier version wrote (see tests/golden/earlier_version) are still of use."""

import csv
import json
import pathlib
import shutil
import tarfile

import jax
import ml_collections
import numpy as np
import pytest
from places import GOLDEN
from safetensors.numpy import load_file

from configs import demo
from convert import decode_hf, to_hf
from convert.work_folder import open_work_folder
from viavsp_jax import evaluate, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.describe import describe
from viavsp_jax.evaluation.report import results

RECORDED = GOLDEN / "earlier_version" / "folders.tar.xz"
DATA = {"features": "av_clean", "encoder-trained": "media_clean"}
UPDATES = 3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(RECORDED) as archive:
        archive.extractall(folder, filter="data")
    return folder


def settings(recorded: pathlib.Path, run: str) -> ml_collections.ConfigDict:
    """Today's config with what the run was given."""
    config = demo.get_config()
    config.ctc.weight = 0.0  # which they had not
    config.update(Checkpoints(recorded / run).restore_config(UPDATES))
    config.llm.path, config.data.path = str(recorded / "llm"), str(recorded / "shards")
    if config.encoder.train:
        config.encoder.path = str(recorded / "encoder")
    return config


def hypotheses(table: pathlib.Path) -> dict[str, str]:
    with table.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["hypothesis"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.mark.parametrize("run", DATA)
def test_evaluation_finds_the_same_words(recorded, tmp_path, run):
    """And lays its results beside those, which it takes over."""
    work = tmp_path / "work"
    shutil.copytree(recorded / run, work)
    table = recorded / run / "hypotheses" / "av_clean.tsv"
    assert len(set(hypotheses(table).values())) == 2
    evaluate.evaluate(settings(recorded, run), work)
    now = pathlib.Path(results.last_folder(work))
    assert hypotheses(now / "av_clean.tsv") == hypotheses(table) and not (work / "hypotheses").exists()
    (earlier,) = {*(work / "evaluations").iterdir()} - {now}
    assert (earlier / "av_clean.tsv").read_bytes() == table.read_bytes()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (earlier, recorded / run)]
    assert reports[0]["av_clean"] == reports[1]["av_clean"]


@pytest.mark.parametrize("run", DATA)
def test_the_export_has_the_same_weights(recorded, tmp_path, run):
    to_hf.export(recorded / run, str(tmp_path / "hf"), llm=recorded / "llm", encoder=recorded / "encoder")
    expected = recorded / f"{run}-export"
    files = sorted(path.relative_to(expected) for path in expected.rglob("*.safetensors"))
    assert len(files) == (3 if run == "encoder-trained" else 2)
    for file in files:
        ours, theirs = load_file(tmp_path / "hf" / file), load_file(expected / file)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("run", DATA)
def test_an_export_is_decoded_to_the_same_words(recorded, run):
    export = recorded / f"{run}-export"
    model = decode_hf.load_model(str(export), str(recorded / "raw"), merged=False, device="cpu", dtype=None)
    source = decode_hf.open_data(str(recorded / "shards" / DATA[run]), "test", run == "encoder-trained")
    found = {row["id"]: row["hypothesis"] for row in decode_hf.decode(model, source, batch_size=2)}
    assert found == hypotheses(export / "hypotheses.tsv")


@pytest.mark.parametrize("run", DATA)
def test_all_that_learns_is_restored(recorded, run):
    opened = open_work_folder(recorded / run, llm=recorded / "llm", encoder=recorded / "encoder")
    state = opened.read_state()
    assert state.step == UPDATES and len(jax.tree.leaves(state.opt_state)) > 2 * len(jax.tree.leaves(state.trainable))


def test_it_is_described(recorded, tmp_path, capsys):
    describe(recorded / "features", tmp_path / "found.json")
    assert "data.av_clean" in (shown := capsys.readouterr().out) and "2175f5e" in shown
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["best"] == UPDATES and found["checkpoints"][0]["config"]["lora"]["rank"] == 2


def test_training_goes_on(recorded, tmp_path, capsys):
    shutil.copytree(recorded / "features", tmp_path / "work")
    config = settings(recorded, "features")
    config.updates = UPDATES + 1
    train.train(config, tmp_path / "work")
    assert f"continuing from update {UPDATES}" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "work").latest_step() == UPDATES + 1
