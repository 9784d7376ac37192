"""What only a process of its own can show: real commands, what they import, and hashes of strings that differ."""

import json
import os
import subprocess
import sys
import tarfile

import numpy as np
from places import GOLDEN, ROOT
from small_corpus import write_corpus
from small_records import WIDTH, example

from viavsp_jax.data import records
from viavsp_jax.evaluation.report.page import make_report, write_report
from viavsp_jax.evaluation.report.results import folder_of
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.runtime.tables import write_table
from viavsp_jax.runtime.tensorboard import Writer

ABOUT = {"checkpoint": 300, "split": "test"}


def test_training_refuses_a_missing_language_model(tmp_path):
    """As in the README."""
    command = [sys.executable, "-m", "viavsp_jax.main", "--config=configs/final.py", f"--workdir={tmp_path}"]
    result = subprocess.run([*command, "--config.llm.path=/does/not/exist"], capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "\n  - /does/not/exist/config.json does not exist" in result.stderr


def test_libtpu_without_a_tpu_is_silent(tmp_path):
    with tarfile.open(GOLDEN / "earlier_version" / "folders.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    plain = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    work = tmp_path / "features"
    for command in (["viavsp_jax.main", "--mode=describe", f"--workdir={work}"], ["viavsp_jax.compare", work]):
        done = subprocess.run([sys.executable, "-m", *command], env=plain, capture_output=True, text=True, check=True)
        assert done.stdout and not done.stderr


def test_a_program_may_have_folders_with_our_names(tmp_path):
    """Which it imported before ours."""
    for name, text in (("configs/__init__", ""), ("configs/mine", "RATE = 3"), ("convert", "def convert(): return 4")):
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    program = (
        "import configs.mine, convert, sys; sys.path.append(sys.argv[1]); from viavsp_jax import settings; "
        "from configs import base, mine; from convert import names; "
        "print(mine.RATE, convert.convert(), settings.base is base, names.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", program, ROOT], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.split() == ["3", "4", "True", str(ROOT / "convert" / "names.py")], result.stderr


def test_reports_do_not_depend_on_hashes(tmp_path):
    said = [("a_1", "má ăn cá", "mà ăn gà"), ("b_1", "trời mưa to quá", "chời mưa"), ("b_2", "đẹp", "")]
    rows = [
        {"id": name, "reference": reference, "hypothesis": hypothesis, "score": -0.5, "seconds": 3.0,
         "source_language": "vi", "target_language": "vi"}
        for name, reference, hypothesis in said
    ]  # fmt: skip
    channels = {name: f"kênh <{name[0]}>" for name, *_ in said}
    folders = {"av_clean": rows, "video_clean": rows, "audio_babble_0db": rows[1:], "audio_babble_-5db": rows[2:]}
    writer = Writer(tmp_path, {})
    for step in range(1, 4):
        writer.write(step, {"train/loss": 3 / step, "valid/loss": 4 / step})
    writer.close()
    for name, table in folders.items():
        write_table(folder_of(tmp_path, ABOUT) / f"{name}.tsv", table)
    write_report(tmp_path, make_report(ABOUT, folders, channels))
    before = [(tmp_path / name).read_bytes() for name in ("report.json", "report.html")]
    (tmp_path / "report.html").unlink()
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps([{"id": name, "channel": channel} for name, channel in channels.items()]))
    command = [sys.executable, "-m", "viavsp_jax.report", "--workdir", tmp_path, "--mapping", mapping]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / name).read_bytes() for name in ("report.json", "report.html")] == before


def test_tfds_reads_shards_without_tensorflow(tmp_path):
    """Nor does any of it import PyTorch or JAX."""
    rng = np.random.default_rng(0)
    examples = [example(number, rng, num_frames=number) for number in range(3, 8)]
    for index, part in enumerate((examples[:2], examples[2:])):
        records.write_shard(records.shard_path(tmp_path, "train", index, 2), part)
    records.write_metadata(tmp_path, WIDTH, ["train"])
    script = """
import json, sys
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(sys.argv[1]).as_data_source("train")
from viavsp_jax.data import records
ours = records.open_split(sys.argv[1], "train")
records.write_shard(records.shard_path(sys.argv[1], "valid", 0, 1), [ours[0]])
records.write_metadata(sys.argv[1], 8, ["train", "valid"])
print(json.dumps([[x["id"].decode(), x["transcript"].decode(), x["features"].astype(float).sum(),
                   str(x["features"].dtype), x["cluster_counts"].tolist(), y["transcript"]]
                  for x, y in zip(source, ours, strict=True)]))
assert not {"tensorflow", "torch", "jax"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = [
        [x["id"], x["transcript"], float(x["features"].astype(float).sum()), "float16",
         x["cluster_counts"].tolist(), x["transcript"]]
        for x in examples
    ]  # fmt: skip
    assert json.loads(result.stdout) == expected
    assert len(records.open_split(tmp_path, "valid")) == 1


def test_the_manifest_stage_imports_no_pytorch(tmp_path):
    write_corpus(tmp_path / "corpus", {"train": [4, 6], "valid": [5]})
    script = (
        "import sys; from viavsp_jax.prepare.__main__ import main; main(sys.argv[1:]);"
        "assert not {'torch', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    arguments = ["manifest", "--data", str(tmp_path / "corpus"), "--output", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    assert len(read_manifest(tmp_path / "out", "train")) == 2


def test_the_notice_of_a_renamed_module_names_the_line_that_imports_it():
    command = [sys.executable, "-c", "from viavsp_jax.errors import InputError\nprint(InputError.__module__)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "viavsp_jax.runtime.errors\n"
    assert done.stderr.startswith("<string>:1: UserWarning: viavsp_jax.errors is now viavsp_jax.runtime.errors")
