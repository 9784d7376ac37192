"""A disk that is full or read-only in the middle of a stage: one sentence, nothing lost, and on it goes with room."""

import re
import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from bad_input import refused
from real_videos import write_video
from small_corpus import write_corpus
from small_run import command, small_config
from small_shards import contents, options
from without_torch import without_torch

from viavsp_jax import train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.evaluation.report.page import make_report, write_report
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.kmeans import load_centers
from viavsp_jax.report import main as report_main
from viavsp_jax.report import remake
from viavsp_jax.runtime.errors import InputError, reported_to_user

PAGE = 4096  # what a file on the disk takes at least
NO_ROOM, LOCKED = "No space left on device, expected a disk with room", "Read-only file system"


def room_of(folder, files) -> int:
    """What files take on the disk."""
    return sum(-(-(folder / name).stat().st_size // PAGE) * PAGE for name in files)


def assert_told(run: Callable, capsys, folder, words=NO_ROOM) -> None:
    """A sentence, and no temporary file."""
    assert words in refused(run, capsys)
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_manifests(small_disk, tmp_path, capsys):
    disk = small_disk(2 << 20)
    write_corpus(tmp_path / "corpus", {"train": [4, 5], "test": [4]})
    table = pd.read_parquet(tmp_path / "corpus" / "metadata.parquet")
    table = pd.concat([table, table.iloc[-1:].assign(id="missing")])
    table.to_parquet(tmp_path / "corpus" / "metadata.parquet")

    def run(output, *more):
        main(["manifest", "--data", str(tmp_path / "corpus"), "--output", str(output), *more])

    run(tmp_path / "clean")
    output = disk.path / "manifest"
    run(output, "--split", "train")
    before = contents(output)
    for pages in (0, 1, 1):  # for nothing, for skipped.jsonl, for test.wrd besides
        disk.fill(leave=pages * PAGE)
        assert_told(lambda: run(output), capsys, output)
        assert {name: content for name, content in contents(output).items() if name in before} == before
        assert "test.tsv" not in contents(output)
    disk.free()
    disk.read_only()
    assert_told(lambda: run(output), capsys, output, LOCKED)
    disk.read_only(False)
    run(output)
    assert contents(output) == contents(tmp_path / "clean")


@pytest.mark.parametrize("kind", ["features", "media"])
def test_shards(small_disk, prepared, tmp_path, capsys, kind):
    disk = small_disk(8 << 20)
    more = ["--kind", kind, "--num_shards", "3", "--split", "train"]
    main(options(prepared, tmp_path / "clean", *more))
    output = disk.path / "shards"
    first, second = sorted(name for name in contents(tmp_path / "clean") if "array_record" in name)[:2]
    head = room_of(tmp_path / "clean", [name for name in contents(tmp_path / "clean") if "provenance" in name])
    shard = room_of(tmp_path / "clean", [first]) + PAGE  # and its notes
    disk.fill(leave=head + shard + room_of(tmp_path / "clean", [second]) // 2)
    assert_told(lambda: main(options(prepared, output, *more)), capsys, output)
    before = contents(output)
    assert first in before and second not in before
    assert_told(lambda: main(options(prepared, output, *more)), capsys, output)
    assert contents(output) == before
    disk.free()
    disk.read_only()
    assert_told(lambda: main(options(prepared, output, *more)), capsys, output, LOCKED)
    disk.read_only(False)
    main(options(prepared, output, *more))
    assert {name: contents(output)[name] for name in before} == before
    assert contents(output) == contents(tmp_path / "clean")


def test_centres(small_disk, prepared, tmp_path, capsys):
    """The features of all frames lie on the disk for a while."""
    disk = small_disk(1 << 20)
    shards = options(prepared, disk.path / "out" / "kmeans", "--split", "train")
    at = shards.index("--kmeans")
    command = ["kmeans", *shards[1:at], *shards[at + 2 :], "--layer", "2", "--num_clusters", "3"]
    (disk.path / "out").mkdir()
    disk.fill(leave=PAGE)
    assert_told(lambda: main(command), capsys, disk.path)
    assert not list((disk.path / "out").iterdir())
    disk.free()
    main(command)
    centers = load_centers(str(disk.path / "out" / "kmeans"))[0]
    command[command.index(str(disk.path / "out" / "kmeans"))] = str(tmp_path / "kmeans")
    main(command)
    np.testing.assert_array_equal(centers, load_centers(str(tmp_path / "kmeans"))[0])


def test_mouths(small_disk, tmp_path, capsys):
    disk, rng = small_disk(2 << 20), np.random.default_rng(0)
    (tmp_path / "videos").mkdir()
    for name in "ab":
        mouths = rng.integers(0, 255, (9, 96, 96, 1)).astype(np.uint8).repeat(3, -1)
        write_video(tmp_path / "videos" / f"{name}.mkv", mouths, samples=rng.integers(-900, 900, 5760).astype(np.int16))

    def run(output, workers):
        main(["mouths", "--videos", str(tmp_path / "videos"), "--output", str(output), "--workers", workers])

    run(tmp_path / "clean", "0")
    clean, output = contents(tmp_path / "clean"), disk.path / "corpus"
    one = room_of(tmp_path / "clean", [name for name in clean if name.split("/")[-1].startswith("a.")])
    for workers, leave in (("0", PAGE), ("1", one + 3 * PAGE)):  # in a process of its own, too
        disk.fill(leave=leave)
        assert_told(lambda: run(output, workers), capsys, output)  # noqa: B023
    before = contents(output)
    assert len([name for name in before if name.startswith("notes/")]) == 1
    disk.free()
    run(output, "1")
    assert {name: contents(output)[name] for name in before} == before
    assert contents(output) == clean


def test_reports(small_disk, tmp_path, capsys):
    disk = small_disk(2 << 20)
    work = disk.path / "work"
    table = work / "evaluations" / "00000003-test" / "av_clean.tsv"
    table.parent.mkdir(parents=True)
    table.write_text("id\treference\thypothesis\nx\tmá ăn cá\tmà ăn gà\n")
    rows = [{"id": "x", "reference": "má ăn cá", "hypothesis": "mà ăn gà"}]
    write_report(work, make_report({"checkpoint": 3, "split": "test"}, {"av_clean": rows}, {}))
    before = contents(work)
    table.write_text("id\treference\thypothesis\nx\tmá ăn cá\tmá ăn cá\n")
    changed = contents(work)
    for prepare, words in ((disk.fill, NO_ROOM), (disk.read_only, LOCKED)):
        prepare()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["report", "--workdir", str(work)])
            assert_told(report_main, capsys, work, words)
        assert contents(work) == changed and changed["report.json"] == before["report.json"]
        disk.read_only(False)
        disk.free()
    shutil.copytree(work, tmp_path / "clean")
    for folder in (work, tmp_path / "clean"):
        remake(folder, "")
    assert contents(work) == contents(tmp_path / "clean") != changed


def test_checkpoints(small_disk, folders, tmp_path, capsys):
    config = small_config(*folders)
    config.checkpoint.keep = 2
    train.train(config, tmp_path / "whole")
    disk = small_disk(4 << 20)
    workdir = disk.path / "work"
    shutil.copytree(tmp_path / "whole", workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    before = contents(workdir / "checkpoints" / "2")
    full = (
        r"could not be written \(No space left on device: it takes 0.\d MB, 0.0 MB are free\), expected .* of update 2"
    )
    run = without_torch(command(config, workdir, updates=4))
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as process:
        before_the_fill = next(line for line in process.stderr if "continuing from update 2" in line)
        disk.fill(leave=8 * PAGE)
        told = process.stderr.read()
    assert before_the_fill and process.returncode == 2 and "Traceback" not in told, told
    (sentence,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert re.search(full, sentence), sentence
    with pytest.raises(InputError, match=r"0.0 MB are free, expected 2.\d MB for 2 \+ 2 checkpoints of 0.5 MB"):
        train.train(config, workdir)  # when it is full at the start
    assert contents(workdir / "checkpoints" / "2") == before
    disk.free()
    disk.read_only()

    def again():  # nothing is being saved when it fails, so a process of its own is not needed
        with reported_to_user():
            train.train(config, workdir)

    assert_told(again, capsys, workdir, LOCKED)
    disk.read_only(False)
    assert contents(workdir / "checkpoints" / "2") == before
    again()
    assert {path.name for path in (workdir / "checkpoints").iterdir()} <= {"2", "4"}
    sums = [Checkpoints(folder)._read_json(4, "sums")["trainable"] for folder in (workdir, tmp_path / "whole")]
    assert sums[0] == sums[1]
