"""A trained run decoded by JAX and, after export, by transformers: the same words, and a report that adds up."""

import csv
import json
import subprocess
import sys

import pytest
from small_run import make_llm, make_shards, small_config

from convert import to_hf
from viavsp_jax import evaluate, scoring, train
from viavsp_jax.errors import InputError


def read_table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(work folder, config) of a short training."""
    folder = tmp_path_factory.mktemp("run")
    make_shards(folder / "shards" / "av_clean")
    config = small_config(make_llm(folder / "llm"), folder / "shards")
    config.updates, config.checkpoint.every, config.optimizer.peak_lr = 20, 20, 0.02
    train.train(config, folder / "work")
    return folder / "work", config


def test_report_adds_up(run, capsys):
    workdir, config = run
    scores = evaluate.evaluate(config, workdir)
    rows = read_table(workdir / "hypotheses" / "av_clean.tsv")
    assert [row["id"] for row in rows] == sorted(f"test0_{i}" for i in range(5))
    assert len({row["hypothesis"] for row in rows}) > 1 and all(float(row["log_prob"]) < 0 for row in rows)
    expected = scoring.score([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    report = json.loads((workdir / "report.json").read_text())
    assert report["av_clean"] == expected == scores["av_clean"]
    assert report["checkpoint"] == 20 and report["split"] == "test"
    assert f"{100 * expected['wer']:.2f}" in capsys.readouterr().out


def test_transformers_writes_the_same_words(run, tmp_path):
    workdir, config = run
    evaluate.evaluate(config, workdir)
    to_hf.export(workdir, str(tmp_path / "hf"))
    arguments = ["--model", tmp_path / "hf", "--data", f"{config.data.path}/av_clean", "--output", tmp_path / "out.tsv"]
    command = [sys.executable, "-m", "convert.decode_hf", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ours = {row["id"]: row["hypothesis"] for row in read_table(workdir / "hypotheses" / "av_clean.tsv")}
    theirs = {row["id"]: row["hypothesis"] for row in read_table(tmp_path / "out.tsv")}
    assert ours == theirs


def test_nothing_to_evaluate(run, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        evaluate.evaluate(run[1], tmp_path)
