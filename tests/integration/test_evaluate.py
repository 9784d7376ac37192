"""A trained run decoded by JAX and, after export, by transformers: the same words, and a report that adds up."""

import csv
import dataclasses
import functools
import io
import json
import pathlib
import re
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
from viavsp_jax.evaluation.report.results import last_folder, search_of
from viavsp_jax.experiment import Experiment, load_experiment
from viavsp_jax.models.quantize import quantize_stack
from viavsp_jax.report import remake
from viavsp_jax.runtime.errors import InputError


def read_table(path):
    return list(csv.DictReader(io.StringIO(pathlib.Path(path).read_text(encoding="utf-8")), delimiter="\t"))


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
    return read_table(last_folder(workdir) / "av_clean.tsv")


def test_report_adds_up(run, capsys):
    workdir, config = run
    config = config.copy_and_resolve_references()
    config.evaluate.mapping = str(workdir / "mapping.json")
    mapping = [{"id": f"test0_{i}", "channel": f"channel {i % 2}"} for i in range(5)]
    (workdir / "mapping.json").write_text(json.dumps(mapping))
    scores = evaluate.evaluate(config, workdir)
    rows = read_table(last_folder(workdir) / "av_clean.tsv")
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


def kept(workdir):
    """What lies in each folder of evaluations."""
    return {
        folder.name: {file.name: file.read_bytes() for file in folder.iterdir()}
        for folder in sorted((workdir / "evaluations").iterdir())
    }


def test_every_evaluation_is_kept(evaluated, capsys):
    workdir, config = evaluated
    found = []
    for names, split, beams, dtype, quantization in (
        (("av_clean",), "test", 5, "float32", "none"),
        (("audio_clean",), "test", 5, "float32", "none"),  # another set of the same
        (("av_clean",), "valid", 5, "float32", "none"),
        (("av_clean",), "test", 2, "float32", "none"),
        (("av_clean",), "test", 2, "bfloat16", "none"),
        (("av_clean",), "test", 2, "float32", "int8"),
    ):
        config.evaluate.names, config.evaluate.split, config.evaluate.decoding.num_beams = names, split, beams
        config.dtype, config.llm.quantization = dtype, quantization
        before = kept(workdir) if found else {}
        evaluate.evaluate(config, workdir)
        after, last = kept(workdir), last_folder(workdir).name
        assert {name: files for name, files in after.items() if name != last} == {
            name: files for name, files in before.items() if name != last
        }, "what others made stays as it is"
        assert (workdir / "report.json").read_bytes() == after[last]["report.json"]
        found.append(last)
        assert last in capsys.readouterr().out
    assert found == [
        "00000020-test-beam5-float32", "00000020-test-beam5-float32", "00000020-valid-beam5-float32",
        "00000020-test-beam2-float32", "00000020-test-beam2-bfloat16", "00000020-test-beam2-float32-int8",
    ]  # fmt: skip
    tables = {name: {file for file in files if file.endswith(".tsv")} for name, files in kept(workdir).items()}
    assert tables == {name: {"av_clean.tsv"} for name in found} | {found[0]: {"av_clean.tsv", "audio_clean.tsv"}}
    both = json.loads(kept(workdir)[found[0]]["report.json"])
    assert list(both["analysis"]) == ["av_clean", "audio_clean"]
    # Made again, by its tables or by decoding, all is the same.
    before = kept(workdir), (workdir / "report.html").read_bytes()
    remake(workdir, "")
    assert (kept(workdir), (workdir / "report.html").read_bytes()) == before
    evaluate.evaluate(config, workdir)
    assert (kept(workdir), (workdir / "report.html").read_bytes()) == before


def test_another_search_or_training_is_compared(evaluated):
    workdir, config = evaluated
    evaluate.evaluate(config, workdir)
    assert "All evaluations" not in (workdir / "report.html").read_text(encoding="utf-8")
    first = results_of(workdir)
    config.evaluate.decoding.length_penalty = 0.5
    evaluate.evaluate(config, workdir)
    # Another training whose checkpoint is of the same update.
    opened = open_work_folder(workdir)
    state, fits = opened.read_state(), opened.checkpoints.restore_fits(20)
    state = dataclasses.replace(state, trainable=jax.tree.map(lambda x: x * 1.01, state.trainable))
    shutil.rmtree(workdir / "checkpoints")
    checkpoints = Checkpoints(workdir, 1)
    checkpoints.save(state, None, config.to_json(), fits, {}, {"accuracy": 0.5})
    checkpoints.close()
    evaluate.evaluate(config, workdir)
    report, page = results_of(workdir), (workdir / "report.html").read_text(encoding="utf-8")
    assert report["weights"] != first["weights"] and report["checkpoint"] == first["checkpoint"]
    usual, *others = kept(workdir)
    assert usual == "00000020-test-beam5-float32" and len(others) == 2
    assert all(re.fullmatch(usual + "-[0-9a-f]{8}", name) for name in others)
    assert all(f"evaluations/{name}/report.html" in page for name in (usual, *others))
    assert page.count("(of another training)") == 2 and "length_penalty 0.5" in page
    card = _scores(open_work_folder(workdir), workdir)
    assert f"| av_clean | 5 | {100 * report['av_clean']['wer']:.2f}" in card and card.count("av_clean") == 1


def test_the_checkpoint_that_is_asked_for(evaluated, capsys):
    workdir, config = evaluated
    opened = open_work_folder(workdir)
    state, fits = opened.read_state(), opened.checkpoints.restore_fits(20)
    checkpoints = Checkpoints(workdir, 2)
    for step, accuracy in ((25, 0.0), (30, 1.0), (35, 0.5)):
        state = dataclasses.replace(state, step=np.int32(step))
        checkpoints.save(state, None, config.to_json(), fits, {}, {"accuracy": accuracy})
    checkpoints.close()
    for which, step in (("best", 30), ("latest", 35), ("30", 30)):
        evaluate.evaluate(config, workdir, which)
        assert results_of(workdir)["checkpoint"] == step
    with pytest.raises(InputError, match=r"holds no checkpoint 31: expected best, latest or one of \[30, 35\]"):
        evaluate.evaluate(config, workdir, "31")
    assert list(kept(workdir)) == ["00000030-test-beam5-float32", "00000035-test-beam5-float32"]


def test_an_earlier_version_kept_the_newest_of_each_folder_and_split(evaluated):
    """In one report and in `hypotheses`, of several checkpoints and searches."""
    workdir, config = evaluated
    for split, beams in (("valid", 5), ("test", 2)):
        config.evaluate.split, config.evaluate.decoding.num_beams = split, beams
        evaluate.evaluate(config, workdir)
    before = kept(workdir)
    reports = [json.loads(files["report.json"]) for files in before.values()]
    old = {**reports[1], "av_clean": reports[0]["av_clean"]}
    for name in ("evaluations", "analysis"):
        old[name] = reports[1][name] | reports[0][name]
    tables = dict(zip(("av_clean", "av_clean.valid"), before.values(), strict=True))
    for again in (lambda: remake(workdir, ""), lambda: evaluate.evaluate(config, workdir)):
        shutil.rmtree(workdir / "evaluations")
        (workdir / "report.json").write_text(json.dumps(old))
        (workdir / "hypotheses").mkdir()
        for key, files in tables.items():
            (workdir / "hypotheses" / f"{key}.tsv").write_bytes(files["av_clean.tsv"])
        assert _scores(open_work_folder(workdir), workdir).count("| av_clean |") == 2
        again()
        assert not (workdir / "hypotheses").exists()
        found = kept(workdir)
        assert found.keys() == before.keys()
        for name, files in before.items():
            assert all(found[name][file] == files[file] for file in ("av_clean.tsv", "report.json"))


def test_the_first_versions_called_tables_by_the_folder_alone(evaluated):
    workdir, config = evaluated
    config.evaluate.split = "valid"
    evaluate.evaluate(config, workdir)
    report, table = results_of(workdir), (last_folder(workdir) / "av_clean.tsv").read_bytes()
    old = {"checkpoint": 20, "split": "valid", "av_clean": report["av_clean.valid"]}
    old["analysis"] = {"av_clean": report["analysis"]["av_clean.valid"]}
    config.evaluate.split = "test"
    for again in (lambda: remake(workdir, ""), lambda: evaluate.evaluate(config, workdir)):
        shutil.rmtree(workdir / "evaluations")
        (workdir / "hypotheses").mkdir()
        (workdir / "hypotheses" / "av_clean.tsv").write_bytes(table)
        (workdir / "report.json").write_text(json.dumps(old))
        score = f"| av_clean | 5 | {100 * report['av_clean.valid']['wer']:.2f}"
        assert score in _scores(open_work_folder(workdir), workdir)
        again()
        files = kept(workdir)["00000020-valid"]
        assert files["av_clean.tsv"] == table and not (workdir / "hypotheses").exists()
        assert json.loads(files["report.json"])["av_clean.valid"] == report["av_clean.valid"]
    assert list(kept(workdir)) == ["00000020-test-beam5-float32", "00000020-valid"]


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
        (
            ("av_clean", "video_clean"),
            "test",
            "video_clean: no such folder, expected config.evaluate.names of audio_clean, av_clean",
        ),
        (("av_clean", "audio_clean"), "dev", r"av_clean: no split 'dev', expected one of \['test', 'train', 'valid'\]"),
        ((), "test", r"config.evaluate.names is \(\), expected a tuple of at least 1"),
        (("analysis",), "test", "config.evaluate.names is"),
    ):
        config.evaluate.names, config.evaluate.split = names, split
        with pytest.raises(InputError, match=words):
            evaluate.evaluate(config, workdir)
    assert not (workdir / "evaluations").exists()


def test_what_was_decoded_before_a_stop_is_kept(evaluated, monkeypatch):
    workdir, config = evaluated
    config.evaluate.names = ("av_clean", "audio_clean")
    decode_folder = evaluate.decode_folder

    def stopped(experiment, decode_batch, name, *more):
        if name == "audio_clean":
            raise KeyboardInterrupt
        return decode_folder(experiment, decode_batch, name, *more)

    monkeypatch.setattr(evaluate, "decode_folder", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(config, workdir)
    assert list(results_of(workdir)["evaluations"]) == ["av_clean"]
    assert "audio_clean.tsv" not in kept(workdir)[last_folder(workdir).name]


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
    ours = {row["id"]: row["hypothesis"] for row in read_table(last_folder(workdir) / "av_clean.tsv")}
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
    assert base.pop("compression") == "" and recorded["compression"] == "clusters"
    assert base.pop("ctc_weight") == -1 and recorded["ctc_weight"] == 0
    assert recorded["decoding"] == base and set(settings) < set(base)
    rows = decoded(run, **base | settings)
    (exported / "config.json").write_text(json.dumps(recorded | {"decoding": base | settings}))
    model = decode_hf.load_model(exported, None, False, "cpu", None)
    (exported / "config.json").write_text(json.dumps(recorded))
    theirs = decode_hf.decode(model, open_split(f"{run[1].data.path}/av_clean", "test"), 3)
    assert [row["hypothesis"] for row in theirs] == [row["hypothesis"] for row in rows]
    np.testing.assert_allclose([row["score"] for row in theirs], [float(row["score"]) for row in rows], atol=2e-4)


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
    before = [float(row["score"]) for row in read_table(last_folder(workdir) / "av_clean.tsv")]
    whole = load_experiment(config).load_frozen()["llm"]["layers"]["down"]["kernel"]
    config.llm.quantization = "int8"
    experiment = load_experiment(config)
    frozen, shapes = experiment.load_frozen(), functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(frozen) == shapes(experiment.frozen)
    expected = quantize_stack(whole, "int8")
    jax.tree.map(np.testing.assert_array_equal, frozen["llm"]["layers"]["down"]["kernel"], expected)
    evaluate.evaluate(config, workdir)
    assert "config.llm.quantization was changed from none to int8" in capsys.readouterr().out
    scores = [float(row["score"]) for row in read_table(last_folder(workdir) / "av_clean.tsv")]
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
