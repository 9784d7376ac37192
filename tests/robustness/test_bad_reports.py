"""Bad work folders and files at the commands that read results and weights of others: report and convert."""

import json
import shutil

import pytest
from bad_input import REFUSED, Bad, each, refused

from convert import from_fairseq, from_hf, from_km, to_hf
from viavsp_jax import report
from viavsp_jax.evaluation.report.page import make_report, write_report
from viavsp_jax.runtime.tables import write_table

REPORT = "report"
HEAD = b"id\treference\thypothesis\tseconds\n"
KEPT = "evaluations/00000003-test"
TABLE, SCORES, MAPPING = f"{KEPT}/av_clean.tsv", "report.json", "mapping.json"


def bad(wrong, words, name, content):
    """A file of the work folder that holds something else or, for None, is not there."""

    def make(folder):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return Bad(REPORT, wrong, REFUSED, words, make)


REPORTS = [
    bad("no report.json", "report.json: no such file, expected a work folder that --mode=eval", SCORES, None),
    bad("report.json is cut off", "report.json: not a report (JSONDecodeError", SCORES, '{"checkpoint": 3'),
    bad("report.json is not UTF-8", "report.json: not a report (UnicodeDecodeError", SCORES, b'{"split": "\xff"}'),
    bad("report.json is nested too deeply", "report.json: not a report (RecursionError", SCORES, "[" * 99_999),
    bad("report.json is a list", "report.json: not a report (TypeError", SCORES, "[1]"),
    bad("report.json lacks the split", "report.json: not a report (KeyError('split'))", SCORES, '{"checkpoint": 3}'),
    bad(
        "report.json names no shard folder",
        "report.json: names no shard folder, expected those that were evaluated",
        SCORES,
        '{"checkpoint": 3, "split": "test", "analysis": {}}',
    ),
    bad("report.json of an evaluation is cut off", f"{KEPT}/report.json: not a report", f"{KEPT}/report.json", "{"),
    bad(
        "report.json tells a split with a slash",
        "report.json: not a report (ValueError(",
        SCORES,
        '{"checkpoint": 3, "split": "/../../x", "analysis": {"av_clean": {}}, "av_clean": {}}',
    ),
    bad("hypotheses are missing", "av_clean.tsv: no such file, expected the hypotheses", TABLE, None),
    bad("hypotheses are not UTF-8", "not UTF-8 text", TABLE, HEAD + b"x\t\xff\ta\t1\n"),
    bad("hypotheses are UTF-16, cut off", "not UTF-16 text", TABLE, HEAD.decode().encode("utf-16")[:-1]),
    bad("hypotheses without a column", "expected a table with id, reference", TABLE, b"id\treference\nx\ta\n"),
    bad("hypotheses without rows", "and at least one clip", TABLE, HEAD),
    bad("a reference is empty", "the reference of 'x' is empty", TABLE, HEAD + b"x\t \ta\t1\n"),
    bad("one clip twice", "id 'x' occurs twice", TABLE, HEAD + b"x\ta\ta\t1\n" * 2),
    bad("same clip in NFC and in NFD", "occurs twice", TABLE, HEAD + "á\ta\ta\t1\na\u0301\ta\ta\t1\n".encode()),
    bad("a row without an id", "the row of reference 'a' has no id", TABLE, HEAD + b"\ta\ta\t1\n"),
    bad("a row with too many values", "fewer or more values than there are columns", TABLE, HEAD + b"x\ta\ta\t1\t2\n"),
    bad("a row with too few values", "fewer or more values than there are columns", TABLE, HEAD + b"x\ta\ta\n"),
    bad("seconds are not a number", "the seconds of 'x' are 'nan'", TABLE, HEAD + b"x\ta\ta\tnan\n"),
    bad(
        "positions are not a number",
        "the positions of 'x' are '-1'",
        TABLE,
        HEAD.replace(b"seconds", b"positions") + b"x\ta\ta\t-1\n",
    ),
    bad("overlong value", "not a table (field larger than", TABLE, HEAD + b"x\t" + b"a" * 200_000 + b"\ta\t1\n"),
    bad("no mapping.json", "mapping.json: no such file", MAPPING, None),
    bad("mapping.json is cut off", "mapping.json: not a JSON table", MAPPING, "["),
    bad("mapping.json is empty", "mapping.json: not a JSON table", MAPPING, ""),
    bad("mapping.json is not UTF-8", "mapping.json: not a JSON table", MAPPING, b'[{"id": "\xff"}]'),
    bad("mapping.json lacks a column", "has columns ['id'], expected id and channel", MAPPING, '[{"id": "x"}]'),
]


def nothing(folder):
    return folder / "nothing"


def empty_folder(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def adapter(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "llama"}')
    return folder


def other_model(folder):
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_embd": 768}')
    return folder


def page_of_text(folder):
    (folder / "text").write_text("<html>404</html>")
    return folder / "text"


CONVERSIONS = [
    Bad("convert.from_hf", "no such folder", REFUSED, "config.json does not exist", nothing),
    Bad("convert.from_hf", "folder without a model", REFUSED, "config.json does not exist", empty_folder),
    Bad("convert.from_hf", "adapter, alone or beside weights", REFUSED, "holds an adapter", adapter),
    Bad(
        "convert.from_hf", "another model", REFUSED, "model_type is 'gpt2', expected one of llama, mistral", other_model
    ),
    Bad("convert.from_fairseq", "no such file", REFUSED, "no such file, expected a fairseq checkpoint", nothing),
    Bad("convert.from_fairseq", "folder in its place", REFUSED, "no such file, expected a fairseq", empty_folder),
    Bad("convert.from_fairseq", "another file", REFUSED, "not a PyTorch zip archive", page_of_text),
    Bad("convert.from_km", "no such file", REFUSED, "no such file, expected a K-Means model", nothing),
    Bad("convert.from_km", "another file", REFUSED, "not a readable K-Means model", page_of_text),
    Bad("convert.to_hf", "no such work folder", REFUSED, "holds no checkpoints: train first", nothing),
    Bad("convert.to_hf", "work folder without a checkpoint", REFUSED, "holds no checkpoints", empty_folder),
]
COMMANDS = {module.__name__: module for module in (from_hf, from_fairseq, from_km, to_hf)}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A work folder after an evaluation, with the channels; read only."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = [{"id": name, "reference": "má ăn cá", "hypothesis": "mà ăn gà", "seconds": 2.0} for name in "xy"]
    write_table(folder / TABLE, rows)
    (folder / MAPPING).write_text(json.dumps([{"id": name, "channel": "kênh"} for name in "xy"]))
    write_report(
        folder, make_report({"checkpoint": 3, "split": "test"}, {"av_clean": rows}, {"x": "kênh", "y": "kênh"})
    )
    return folder


def remake(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "--workdir", str(folder), "--mapping", str(folder / MAPPING)])
    report.main()


@each(REPORTS)
def test_a_bad_report_is_refused_and_kept(evaluated, tmp_path, monkeypatch, capsys, case):
    folder = tmp_path / "work"
    shutil.copytree(evaluated, folder)
    case.make(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = refused(lambda: remake(folder, monkeypatch), capsys)
    assert case.words in message and str(folder) in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_good_report_is_made_again(evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated, tmp_path / "work")
    (tmp_path / "work" / "report.html").unlink()
    remake(tmp_path / "work", monkeypatch)
    for name in ("report.json", "report.html"):
        assert (tmp_path / "work" / name).read_bytes() == (evaluated / name).read_bytes()


@pytest.mark.parametrize("case", CONVERSIONS, ids=lambda case: f"{case.entry}: {case.wrong}")
def test_other_files_are_not_converted(tmp_path, monkeypatch, capsys, case):
    given = [str(case.make(tmp_path))]
    given = ["--workdir", *given] if case.entry == "convert.to_hf" else given
    monkeypatch.setattr("sys.argv", [case.entry, *given, "--output", str(tmp_path / "out")])
    message = refused(COMMANDS[case.entry].main, capsys)
    assert case.words in message and str(tmp_path) in message and not (tmp_path / "out").exists()
