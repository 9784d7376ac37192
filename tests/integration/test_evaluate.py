"""A trained run decoded by JAX and, after export, by transformers: the same words, and a report that adds up."""

import csv
import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from devices import with_devices
from small_run import make_llm, make_shards, small_config

from convert import decode_hf, to_hf
from convert.model_card import _scores
from convert.work_folder import open_work_folder
from viavsp_jax import evaluate, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data.records import open_split
from viavsp_jax.decoding import decoder
from viavsp_jax.decoding.decoder import Decoder, capacities, fill_up
from viavsp_jax.evaluation import scoring
from viavsp_jax.evaluation.report.results import search_of
from viavsp_jax.experiment import Experiment, load_experiment
from viavsp_jax.models.quantize import quantize_stack
from viavsp_jax.report import remake
from viavsp_jax.runtime.errors import InputError


def read_table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def decoder_of(exp):
    return Decoder(exp.mesh, exp.structure, exp.settings.evaluation.decoding, exp.prompt.end_ids)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(work folder, config) of a short training."""
    folder = tmp_path_factory.mktemp("run")
    make_shards(folder / "shards" / "av_clean")
    config = small_config(make_llm(folder / "llm"), folder / "shards")
    config.updates, config.checkpoint.every, config.optimizer.peak_lr = 20, 20, 0.02
    config.evaluate.bucket = 128  # one program for all clips
    train.train(config, folder / "work")
    return folder / "work", config


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "hf"
    to_hf.export(run[0], str(folder))
    return folder


def decoded(run, **settings):
    """Rows of hypotheses of the run under these settings of `config.evaluate`."""
    workdir, config = run
    config = config.copy_and_resolve_references()
    config.evaluate.decoding = settings
    evaluate.evaluate(config, workdir)
    return read_table(workdir / "hypotheses" / "av_clean.tsv")


def test_report_adds_up(run, capsys):
    workdir, config = run
    config = config.copy_and_resolve_references()
    config.evaluate.mapping = str(workdir / "mapping.json")
    mapping = [{"id": f"test0_{i}", "channel": f"channel {i % 2}"} for i in range(5)]
    (workdir / "mapping.json").write_text(json.dumps(mapping))
    scores = evaluate.evaluate(config, workdir)
    rows = read_table(workdir / "hypotheses" / "av_clean.tsv")
    assert [row["id"] for row in rows] == sorted(f"test0_{i}" for i in range(5))
    assert len({row["hypothesis"] for row in rows}) > 1 and all(float(row["score"]) < 0 for row in rows)
    records = {record["id"]: record for record in open_split(f"{config.data.path}/av_clean", "test")}
    assert [float(row["seconds"]) for row in rows] == [len(records[row["id"]]["features"]) / 25 for row in rows]
    assert {(row["source_language"], row["target_language"]) for row in rows} == {("vi", "vi")}
    expected = scoring.score([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    report = json.loads((workdir / "report.json").read_text())
    assert report["av_clean"] == expected == scores["av_clean"]
    assert report["checkpoint"] == 20 and report["split"] == "test"
    channels = report["analysis"]["av_clean"]["channels"]
    assert {entry["channel"]: entry["clips"] for entry in channels} == {"channel 0": 3, "channel 1": 2}
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert f"{100 * expected['wer']:.2f}" in page and "Learning rate" in page
    assert f"{100 * expected['wer']:.2f}" in capsys.readouterr().out


@pytest.fixture
def evaluated(run, tmp_path):
    """(work folder, config) of the run with its checkpoint, and a second shard folder."""
    shutil.copytree(run[0] / "checkpoints", tmp_path / "work" / "checkpoints")
    shutil.copytree(f"{run[1].data.path}/av_clean", tmp_path / "shards" / "av_clean")
    make_shards(tmp_path / "shards" / "audio_clean", seed=3)
    config = run[1].copy_and_resolve_references()
    config.data.path = str(tmp_path / "shards")
    return tmp_path / "work", config


def results_of(workdir):
    return json.loads((workdir / "report.json").read_text(encoding="utf-8"))


def test_results_of_other_folders_and_splits_stay(evaluated, capsys):
    workdir, config = evaluated
    found = {}
    for name, split in (("av_clean", "test"), ("audio_clean", "test"), ("av_clean", "valid")):
        config.evaluate.names, config.evaluate.split = (name,), split
        found[name if split == "test" else f"{name}.{split}"] = evaluate.evaluate(config, workdir)[name]
    report = results_of(workdir)
    assert list(report["analysis"]) == list(report["evaluations"]) == list(found)
    assert all(report[key] == scores for key, scores in found.items())
    for key, prefix in (("av_clean", "test0"), ("audio_clean", "test3"), ("av_clean.valid", "valid0")):
        rows = read_table(workdir / "hypotheses" / f"{key}.tsv")
        assert {row["id"] for row in rows} == {f"{prefix}_{i}" for i in range(5)}
    splits = {key: about["split"] for key, about in report["evaluations"].items()}
    assert splits == {"av_clean": "test", "audio_clean": "test", "av_clean.valid": "valid"}
    assert report["analysis"]["av_clean.valid"]["condition"] == report["analysis"]["av_clean"]["condition"]
    # Of the whole report, the command makes the same again.
    before = [(workdir / name).read_bytes() for name in ("report.json", "report.html")]
    remake(workdir, "")
    assert [(workdir / name).read_bytes() for name in ("report.json", "report.html")] == before


def test_results_of_another_search_or_training_are_marked(evaluated):
    workdir, config = evaluated
    config.evaluate.names = ("av_clean", "audio_clean")
    evaluate.evaluate(config, workdir)
    assert "<th>update</th>" not in (workdir / "report.html").read_text(encoding="utf-8")
    first = results_of(workdir)
    config.evaluate.names, config.evaluate.decoding.num_beams = ("av_clean",), 2
    evaluate.evaluate(config, workdir)
    report, page = results_of(workdir), (workdir / "report.html").read_text(encoding="utf-8")
    assert report["audio_clean"] == first["audio_clean"] and report["decoding"]["num_beams"] == 2
    beams = {key: about["decoding"]["num_beams"] for key, about in report["evaluations"].items()}
    assert beams == {"av_clean": 2, "audio_clean": first["decoding"]["num_beams"]} and beams["audio_clean"] != 2
    assert "<th>update</th>" in page and "num_beams 2, float32" in page
    assert "WER % by modality and noise" not in page, "rates of two searches are not compared"
    # Another training whose checkpoint is of the same update.
    opened = open_work_folder(workdir)
    state, fits = opened.read_state(), opened.checkpoints.restore_fits(20)
    state = dataclasses.replace(state, trainable=jax.tree.map(lambda x: x * 1.01, state.trainable))
    shutil.rmtree(workdir / "checkpoints")
    checkpoints = Checkpoints(workdir, 1)
    checkpoints.save(state, None, config.to_json(), fits, {}, {"accuracy": 0.5})
    checkpoints.close()
    evaluate.evaluate(config, workdir)
    report = results_of(workdir)
    assert report["evaluations"]["audio_clean"] == first["evaluations"]["audio_clean"]
    assert report["weights"] != first["weights"] and report["checkpoint"] == first["checkpoint"]
    assert "20 of another training" in (workdir / "report.html").read_text(encoding="utf-8")
    opened = open_work_folder(workdir)
    card = _scores(opened, workdir)
    assert f"| av_clean | 5 | {100 * report['av_clean']['wer']:.2f}" in card and "audio_clean" not in card


def test_an_earlier_version_called_tables_by_the_folder_alone(evaluated):
    workdir, config = evaluated
    config.evaluate.split = "valid"
    evaluate.evaluate(config, workdir)
    report, table = results_of(workdir), (workdir / "hypotheses" / "av_clean.valid.tsv").read_bytes()
    old = {"checkpoint": 20, "split": "valid", "av_clean": report["av_clean.valid"]}
    old["analysis"] = {"av_clean": report["analysis"]["av_clean.valid"]}
    for again in (lambda: remake(workdir, ""), lambda: evaluate.evaluate(config, workdir)):
        config.evaluate.split = "test"
        (workdir / "hypotheses" / "av_clean.valid.tsv").rename(workdir / "hypotheses" / "av_clean.tsv")
        (workdir / "report.json").write_text(json.dumps(old))
        assert f"| av_clean | 5 | {100 * report['av_clean.valid']['wer']:.2f}" in _scores(
            open_work_folder(workdir), workdir
        )
        again()
        assert (workdir / "hypotheses" / "av_clean.valid.tsv").read_bytes() == table
        now = results_of(workdir)
        assert now["av_clean.valid"] == report["av_clean.valid"]
        assert now["evaluations"]["av_clean.valid"] == {"checkpoint": 20, "split": "valid"}
    assert now["split"] == "test" and now["av_clean"] != now["av_clean.valid"]


@pytest.mark.parametrize("content", ["", "[]", '{"checkpoint": 3, "split": "test", "analysis": {"av_clean": {}}}'])
def test_a_damaged_report_is_found_before_decoding(evaluated, content):
    workdir, config = evaluated
    (workdir / "report.json").write_text(content)
    config.llm.path = "nowhere"
    with pytest.raises(InputError, match="report.json: not a report .* move it away"):
        evaluate.evaluate(config, workdir)
    assert (workdir / "report.json").read_text() == content
    assert "was not evaluated" in _scores(open_work_folder(workdir), workdir)


def test_all_that_is_asked_for_is_looked_for_before_decoding(evaluated, monkeypatch):
    workdir, config = evaluated
    monkeypatch.delattr(Experiment, "load_frozen")
    for names, split, words in (
        (("av_clean", "video_clean"), "test", "video_clean: no such folder"),
        (("av_clean", "audio_clean"), "dev", r"av_clean: no split 'dev', expected one of \['test', 'train', 'valid'\]"),
        ((), "test", r"config.evaluate.names is \(\), expected a tuple of at least 1"),
        (("analysis",), "test", "config.evaluate.names is"),
    ):
        config.evaluate.names, config.evaluate.split = names, split
        with pytest.raises(InputError, match=words):
            evaluate.evaluate(config, workdir)
    assert not (workdir / "hypotheses").exists()


def test_what_was_decoded_before_a_stop_is_kept(evaluated, monkeypatch):
    workdir, config = evaluated
    config.evaluate.names = ("av_clean", "audio_clean")
    decode_folder = evaluate.decode_folder

    def stopped(experiment, decode_batch, name):
        if name == "audio_clean":
            raise KeyboardInterrupt
        return decode_folder(experiment, decode_batch, name)

    monkeypatch.setattr(evaluate, "decode_folder", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(config, workdir)
    assert list(results_of(workdir)["evaluations"]) == ["av_clean"]
    assert [path.name for path in (workdir / "hypotheses").iterdir()] == ["av_clean.tsv"]


def test_a_mapping_is_looked_for_before_decoding(run):
    config = run[1].copy_and_resolve_references()
    config.evaluate.mapping = config.llm.path = "nowhere/mapping.json"
    with pytest.raises(InputError, match="nowhere/mapping.json: no such file, expected the mapping.json"):
        evaluate.evaluate(config, run[0])


def test_transformers_writes_the_same_words(run, exported, tmp_path):
    workdir, config = run
    evaluate.evaluate(config, workdir)
    data = f"{config.data.path}/av_clean"
    arguments = ["--model", exported, "--data", data, "--output", tmp_path / "out.tsv"]
    command = [sys.executable, "-m", "convert.decode_hf", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "generation flags" not in result.stderr
    ours = {row["id"]: row["hypothesis"] for row in read_table(workdir / "hypotheses" / "av_clean.tsv")}
    theirs = {row["id"]: row["hypothesis"] for row in read_table(tmp_path / "out.tsv")}
    assert ours == theirs


@pytest.mark.parametrize("settings", [
    {"num_beams": 3, "early_stopping": True, "length_penalty": -1.0, "min_new_tokens": 4, "repetition_penalty": 1.5},
    {"num_beams": 1, "repetition_penalty": 1.5, "max_new_tokens": 9},
])  # fmt: skip
def test_settings_hold_in_transformers_too(run, exported, settings):
    """As in the export's config.json, which holds those of the training."""
    recorded = json.loads((exported / "config.json").read_text())
    base = run[1].evaluate.decoding.to_dict()
    assert recorded["decoding"] == base and set(settings) < set(base)
    rows = decoded(run, **base | settings)
    (exported / "config.json").write_text(json.dumps(recorded | {"decoding": base | settings}))
    model = decode_hf.load_model(exported, None, False, "cpu", None)
    (exported / "config.json").write_text(json.dumps(recorded))
    theirs = decode_hf.decode(model, open_split(f"{run[1].data.path}/av_clean", "test"), 3)
    assert [row["hypothesis"] for row in theirs] == [row["hypothesis"] for row in rows]


def test_sampling(run):
    settings = {"max_new_tokens": 12, "do_sample": True, "top_p": 0.9}
    assert decoded(run, **settings) != decoded(run, **settings, seed=1)


def test_a_cache_that_fills_up(run, monkeypatch):
    """Room for 2 tokens at first: it moves or grows again and again, and the words stay."""
    settings = run[1].evaluate.decoding.to_dict() | {"early_stopping": "never"}
    expected = decoded(run, **settings)
    rooms, capacity_for = [], Decoder.capacity_for
    monkeypatch.setattr(decoder, "FIRST_CAPACITY", 2)
    monkeypatch.setattr(Decoder, "capacity_for", lambda *args: rooms.append(capacity_for(*args)) or rooms[-1])
    assert decoded(run, **settings) == expected
    assert max(rooms) > 2 and len(rooms) > len(set(rooms))


@pytest.mark.parametrize(("rows", "beams"), [(2, 1), (3, 5)])
def test_bfloat16_decodes_several_rows_and_beams(run, rows, beams):
    """It finds what is as likely as what float32 finds, but for rounding."""
    config, scores = run[1].copy_and_resolve_references(), {}
    config.evaluate.rows, config.evaluate.decoding.num_beams, config.mesh.data = rows, beams, 1
    for config.dtype in ("float32", "bfloat16"):
        experiment = load_experiment(config)
        trainable = Checkpoints(run[0]).restore_trainable(20, experiment.trainable)
        decode_batch = functools.partial(decoder_of(experiment), trainable, experiment.load_frozen())
        scores[config.dtype] = [row["score"] for row in evaluate.decode_folder(experiment, decode_batch, "av_clean")]
    assert len(scores["float32"]) == 5
    np.testing.assert_allclose(scores["bfloat16"], scores["float32"], atol=0.05)


def test_a_training_in_full_decodes_in_int8(evaluated, capsys):
    """The kernels that are loaded are those of the folder, quantised; it is told, and stands in the report."""
    workdir, config = evaluated
    evaluate.evaluate(config, workdir)
    before = [float(row["score"]) for row in read_table(workdir / "hypotheses" / "av_clean.tsv")]
    whole = load_experiment(config).load_frozen()["llm"]["layers"]["down"]["kernel"]
    config.llm.quantization = "int8"
    experiment = load_experiment(config)
    frozen, shapes = experiment.load_frozen(), functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(frozen) == shapes(experiment.frozen)
    expected = quantize_stack(whole, "int8")
    jax.tree.map(np.testing.assert_array_equal, frozen["llm"]["layers"]["down"]["kernel"], expected)
    evaluate.evaluate(config, workdir)
    assert "config.llm.quantization was changed from none to int8" in capsys.readouterr().out
    scores = [float(row["score"]) for row in read_table(workdir / "hypotheses" / "av_clean.tsv")]
    assert scores != before
    np.testing.assert_allclose(scores, before, atol=0.05)
    about = results_of(workdir)["evaluations"]["av_clean"]
    assert about["quantization"] == "int8" and search_of(about).endswith("float32, int8")


@pytest.mark.parametrize("limit, rooms", [(1, [1]), (16, [16]), (17, [16, 17]), (299, [16, 32, 64, 128, 256, 299])])
def test_cache_rooms(limit, rooms):
    assert capacities(limit) == rooms


@pytest.mark.full
def test_meshes_decode_alike(folders):
    """Meshes of 8 devices, in a process of its own, against one device."""
    llm, shards = map(str, folders)
    command = [sys.executable, "tests/helpers/decode_mesh_run.py", llm, shards]
    result = subprocess.run(command, env=with_devices(8), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    experiment = load_experiment(small_config(llm, shards))
    weights = experiment.init_trainable(), experiment.load_frozen()
    expected = evaluate.decode_folder(experiment, functools.partial(decoder_of(experiment), *weights), "av_clean")
    for rows in json.loads(result.stdout):
        assert [row["hypothesis"] for row in rows] == [row["hypothesis"] for row in expected]
        np.testing.assert_allclose(*([row["score"] for row in rows] for rows in (rows, expected)), atol=2e-4)


def test_rows_without_a_clip_repeat_the_last_one():
    batch = {"lengths": np.array([4, 7, 1, 1]), "tokens": np.arange(8).reshape(4, 2)}
    full = fill_up(batch, [{"id": "a"}, {"id": "b"}])
    assert full["lengths"].tolist() == [4, 7, 7, 7] and full["tokens"].tolist() == [[0, 1], *[[2, 3]] * 3]
    assert full["stream"].tolist()[1:] == [full["stream"][1]] * 3 != [full["stream"][0]] * 3


def test_nothing_to_evaluate(run, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        evaluate.evaluate(run[1], tmp_path)
