"""Several runs in one table."""

import csv
import shutil

import pytest
from small_run import small_config

from viavsp_jax import compare, evaluate, train
from viavsp_jax.runtime.errors import InputError


def run(name, seed, lr, wer, accuracy=0.5):
    settings = {"seed": str(seed), "optimizer.peak_lr": str(lr), "updates": "4"}
    run = {
        "workdir": name,
        "settings": settings,
        "update": 4,
        "accuracy": accuracy,
        "evaluated": "4",
        "search": "beams 2",
    }
    return run | {"wer": {"av_clean": wer}}


def test_settings_that_differ_and_means_over_seeds():
    runs = [run("a", 0, 1e-3, 0.25, 0.5), run("b", 1, 1e-3, 0.35, 0.7), run("c", 0, 2e-3, 0.10)]
    first, _, third, mean = compare.compare(runs)
    assert first == {
        "run": "a", "optimizer.peak_lr": "0.001", "seed": "0", "update": "4", "accuracy": "0.5000",
        "evaluated": "4", "search": "beams 2", "av_clean WER %": "25.00",
    }  # fmt: skip
    assert third["av_clean WER %"] == "10.00"
    assert mean == {
        "run": "mean of 2", "optimizer.peak_lr": "0.001", "seed": "all", "update": "", "accuracy": "0.6000 ± 0.1414",
        "evaluated": "", "search": "beams 2", "av_clean WER %": "30.00 ± 7.07",
    }  # fmt: skip


def test_runs_that_were_searched_otherwise_are_not_averaged():
    runs = [run("a", 0, 1e-3, 0.25), run("b", 1, 1e-3, 0.35)]
    runs[1]["search"] = "beams 5"
    assert [line["run"] for line in compare.compare(runs)] == ["a", "b"]


def test_seeds_that_were_calibrated_to_other_weights_are_averaged():
    runs = [run("a", 0, 1e-3, 0.25), run("b", 1, 1e-3, 0.35)]
    for one, weight in zip(runs, ("1", "1.5"), strict=True):
        one["search"] = f"num_beams 5, ctc_weight {weight}, float32"
    assert compare.compare(runs)[2]["run"] == "mean of 2"
    runs[1]["search"] = "num_beams 5, float32"
    assert len(compare.compare(runs)) == 2


def test_a_run_that_was_not_evaluated():
    runs = [run("a", 0, 1e-3, 0.25), run("b", 1, 1e-3, 0.35)]
    runs[1]["wer"] = {}
    lines = compare.compare(runs)
    assert [line["av_clean WER %"] for line in lines] == ["25.00", "-", "-"]


def test_work_folders(folders, tmp_path, capsys):
    config = small_config(*folders)
    config.updates, config.checkpoint.every = 1, 1
    train.train(config, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    evaluate.evaluate(config, tmp_path / "one")
    capsys.readouterr()
    twice = tmp_path / "one" / ".." / "one"
    compare.main([str(tmp_path / "one"), str(tmp_path / "two"), str(twice), f"--output={tmp_path / 'runs.tsv'}"])
    assert "av_clean WER %" in capsys.readouterr().out
    with (tmp_path / "runs.tsv").open(encoding="utf-8", newline="") as file:
        one, two = csv.DictReader(file, delimiter="\t")
    assert float(one["av_clean WER %"]) > 0 and two["av_clean WER %"] == two["evaluated"] == "-"
    assert one["evaluated"] == "1" and "num_beams" in one["search"]
    with pytest.raises(InputError, match="holds no checkpoints: expected the work folder of a training"):
        compare.read_run(tmp_path)
