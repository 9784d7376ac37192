"""What a run shows while it trains, and when it ends by itself."""

import json
import shutil
import sys

import numpy as np
import pytest
import wandb
from small_run import make_shards, small_config
from tensorboard_events import scalars, texts

from viavsp_jax import evaluate, experiment, train
from viavsp_jax.aot import flops
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import pipeline
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.samples import Samples


@pytest.fixture(scope="module")
def watched(folders, tmp_path_factory):
    """Config, work folder and what was said of a run of 4 updates that decodes clips of two sets, best by WER."""
    config, workdir = small_config(*folders), tmp_path_factory.mktemp("watched")
    shards = workdir / "shards"
    shutil.copytree(f"{config.data.path}/av_clean", shards / "av_clean")
    make_shards(shards / "video_clean", seed=1)
    config.data.path, config.data.train = str(shards), ("av_clean", "video_clean")
    config.samples.clips, config.samples.max_new_tokens = 5, 6
    config.checkpoint.best_by, config.checkpoint.keep = "wer", 2
    with pytest.MonkeyPatch.context() as patch:
        told = []
        patch.setattr("tqdm.tqdm.write", lambda text, **_: told.append(text))
        train.train(config, workdir / "work")
    return config, workdir / "work", told


def test_clips_are_decoded_at_every_validation(watched):
    config, workdir, told = watched
    wer, tables = scalars(workdir / "tensorboard")["valid/wer"], texts(workdir / "tensorboard")["valid/decoded"]
    assert wer.keys() == tables.keys() == {2, 4}
    # The texts are those of a greedy evaluation with the same weights.
    config = config.copy_and_resolve_references()
    config.evaluate.split, config.evaluate.names = "valid", config.data.train
    config.evaluate.decoding.num_beams, config.evaluate.decoding.max_new_tokens = 1, 6
    step = Checkpoints(workdir).best_step()
    evaluate.evaluate(config, workdir)
    _, _, *rows = tables[step].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert [row[0].split()[0] for row in cells] == ["av_clean"] * 3 + ["video_clean"] * 2
    for clip, said, decoded in cells:
        name, id = clip.split()
        expected = decoded_in(workdir, name)[id]
        assert (said, decoded) == expected
    assert any(f"WER of 5 clips {100 * wer[step]:.1f} %" in line for line in told)
    assert any(cells[0][1] in line and cells[0][2] in line for line in told)


def decoded_in(workdir, name):
    """Reference and hypothesis by id, wherever the evaluation put them."""
    (table,) = workdir.rglob(f"{name}*.tsv")
    head, *lines = (line.split("\t") for line in table.read_text(encoding="utf-8").splitlines())
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    return {row["id"]: (row["reference"], row["hypothesis"]) for row in rows}


def test_the_best_checkpoint_is_by_wer_when_told_to(watched):
    config, workdir, _ = watched
    wer = scalars(workdir / "tensorboard")["valid/wer"]
    checkpoints = Checkpoints(workdir)
    assert wer[checkpoints.best_step()] == min(wer.values())
    other = config.copy_and_resolve_references()
    other.checkpoint.best_by, other.updates = "accuracy", 6
    with pytest.raises(InputError, match="was saved with config.checkpoint.best_by wer, not accuracy"):
        train.train(other, workdir)


def test_the_best_is_not_sought_among_scores_of_other_clips(watched):
    other = watched[0].copy_and_resolve_references()
    other.samples.clips, other.updates = 9, 6
    with pytest.raises(InputError, match="was saved with config.samples.clips 5, not 9"):
        train.train(other, watched[1])
    other.samples.clips, other.evaluate.decoding.compression = 5, "pool:2"
    with pytest.raises(InputError, match="was saved with config.evaluate.decoding.compression , not pool:2"):
        train.train(other, watched[1])


def test_numbers_of_speed(watched):
    config, workdir, told = watched
    curves = scalars(workdir / "tensorboard")
    for step in (2, 4):
        clips, positions = (curves[f"throughput/{name}_per_second"][step] for name in ("clips", "positions"))
        assert 20 < positions / clips < config.data.row.window
    assert "throughput/mfu" not in curves, "nobody knows the peak of a CPU"
    assert {"train/loss_av", "train/loss_video", "valid/loss_video", "train/gradient_norm"} <= curves.keys()
    assert "train/loss_audio" not in curves
    assert any(line.startswith("update 2 of 4: loss ") and "clips/s" in line for line in told)


def test_the_share_of_the_peak(watched, tmp_path, monkeypatch):
    config = watched[0].copy_and_resolve_references()
    config.updates, config.log_every, config.samples.clips, config.checkpoint.best_by = 1, 1, 0, "accuracy"
    monkeypatch.setattr("viavsp_jax.monitor.peak_flops", lambda device: 1e9)
    train.train(config, tmp_path)
    exp = experiment.load_experiment(config)
    batch = next(pipeline.training_batches(exp.settings.data, exp.prompt))
    spans = [
        text for row in zip(*(batch[name] for name in flops.OF_TEXTS), strict=True) for text in flops.texts_of(*row)
    ]
    curves = scalars(tmp_path / "tensorboard")
    seconds = curves["throughput/step_seconds_max"][1]
    useful = flops.useful_in_training(exp.model.llama, spans)
    devices = exp.mesh.devices.size
    assert curves["throughput/mfu"][1] == pytest.approx(useful / seconds / 1e9 / devices, rel=1e-4)


def test_samples_are_spread_over_the_split_without_those_left_out(watched):
    exp = experiment.load_experiment(watched[0])
    source = pipeline.evaluation_records(exp.settings.data, "av_clean", "valid")
    left = {("av_clean", "valid"): frozenset({source[0]["id"]})}

    def ids(left_out):
        return [record["id"] for records, _ in Samples(exp, left_out)._batches for record in records]

    assert len({*ids({})}) == 5 and source[0]["id"] in ids({})
    assert len({*ids(left)}) == 5 and source[0]["id"] not in ids(left)


def test_settings_are_in_hparams(watched):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = event_accumulator.EventAccumulator(str(watched[1] / "tensorboard"))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["optimizer.peak_lr"].number_value == watched[0].optimizer.peak_lr
    assert found["data.train"].string_value == "['av_clean', 'video_clean']"
    assert found["encoder.train"].bool_value is False


class Noted:
    """A tracker of somebody's own."""

    def __init__(self, config):
        self.config, self.logged, self.finished = config, [], False
        Noted.last = self

    def log(self, values, *, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_trackers_get_what_tensorboard_gets(watched, tmp_path):
    config = watched[0].copy_and_resolve_references()
    config.trackers, config.updates, config.checkpoint.every = (f"{__name__}:Noted", "wandb:init"), 2, 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(tmp_path))
        patch.setenv("WANDB_SILENT", "true")
        train.train(config, tmp_path / "work")
        wandb.teardown()  # its process writes what is left, as at the end of a command
    noted, curves = Noted.last, scalars(tmp_path / "work" / "tensorboard")
    assert noted.finished and noted.config["optimizer.peak_lr"] == config.optimizer.peak_lr
    for step, values in noted.logged:
        for name, value in values.items():
            assert isinstance(value, str) or np.isclose(curves[name][step], value)
    assert "valid/wer" in noted.logged[-1][1] and "decoded" in noted.logged[-1][1]["valid/decoded"]
    (offline,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"valid/wer" in offline.read_bytes()


def test_a_tracker_that_does_not_exist(watched, tmp_path):
    config = watched[0].copy_and_resolve_references()
    config.trackers = ("nowhere_at_all:init",)
    with pytest.raises(InputError, match="config.trackers has 'nowhere_at_all:init' .*expected a function as MODULE"):
        train.train(config, tmp_path)


def test_a_finished_run_has_nothing_to_do(watched, capsys, monkeypatch):
    config, workdir, _ = watched
    before = sorted((workdir / "checkpoints").iterdir())
    monkeypatch.delattr(experiment.Experiment, "load_frozen")
    train.train(config, workdir)
    said = capsys.readouterr().err
    assert "there is nothing to do: all 4 updates are done; a larger config.updates goes on" in said
    assert sorted((workdir / "checkpoints").iterdir()) == before


def test_training_ends_when_nothing_gets_better(folders, tmp_path, capsys):
    config = small_config(*folders)
    config.updates, config.checkpoint.every, config.checkpoint.patience = 9, 1, 2
    config.optimizer.peak_lr = 1e-12  # no update changes what is best
    train.train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 3
    assert "ends at update 3: the last 2 checkpoints are no better than one before" in capsys.readouterr().err
    train.train(config, tmp_path)
    assert "there is nothing to do: the last 2 checkpoints are no better" in capsys.readouterr().err
    config.checkpoint.patience, config.updates = 0, 4
    train.train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 4


def test_a_bar_where_a_person_watches(watched, tmp_path, capsys, monkeypatch):
    config = watched[0].copy_and_resolve_references()
    config.updates, config.log_every, config.samples.clips, config.checkpoint.best_by = 1, 1, 0, "accuracy"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train.train(config, tmp_path)
    shown = capsys.readouterr().err
    assert "1/1" in shown and "update 1 of 1" not in shown
    assert json.dumps(scalars(tmp_path / "tensorboard")["train/loss"])
