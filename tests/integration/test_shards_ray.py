"""The shards stage on a Ray cluster, with real workers that really die, against the stage in one process."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray_items
import ray_work
from ports import free_port
from small_corpus import write_corpus
from small_shards import assert_same_datasets, contents, identity, options, read, refused

from viavsp_jax.data import records
from viavsp_jax.prepare import cluster, shards
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.runtime.errors import InputError

MORE = ["--modalities", "av", "audio", "--num_shards", "3"]


@contextlib.contextmanager
def machine(log: Path, *flags: str) -> Iterator[subprocess.Popen]:
    """A machine of a cluster, as `ray start` starts one, in a folder of its own."""
    command = [Path(sys.executable).with_name("ray"), "start", "--block", "--disable-usage-stats", *flags]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        while "Ray runtime started" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="module")
def address(surroundings, tmp_path_factory):
    """A cluster of one machine, which believes in two cores and a GPU."""
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--port={address.rpartition(':')[2]}", "--num-cpus=2", "--num-gpus=1", "--include-dashboard=false"]
    with machine(tmp_path_factory.mktemp("cluster") / "log", "--head", *flags):
        yield address


def on_ray(address: str) -> list[str]:
    return ["--runner", "ray", "--ray_address", address]


def shards_of(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: identity(path) for path in folder.rglob("viavsp*array_record*")}


@pytest.mark.full
def test_the_command_starts_ray_and_leaves_nothing_behind(prepared, surroundings, tmp_path):
    """Relative paths, noise, both kinds of record and no word of Ray's own."""
    more = [*MORE, "--kind", "both", "--noise", "babble", "--snr", "0"]
    main(options(prepared, tmp_path / "here", *more))
    paths = {name: Path(name) for name in ("manifest", "encoder", "kmeans")}
    arguments = options(prepared, Path(os.path.relpath(tmp_path / "there", prepared)), *more, **paths)
    command = [sys.executable, "-m", "viavsp_jax.prepare", *arguments, "--runner", "ray"]
    result = subprocess.run(command, cwd=prepared, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert_same_datasets(tmp_path / "there", tmp_path / "here")
    assert not result.stdout
    said = [line for line in result.stderr.splitlines() if line and not line.startswith("6 shards: ")]
    assert "6 shards: 100%" in result.stderr and "10/10" in result.stderr
    assert len(said) == 6 and all(", 0 skipped" in line for line in said), said
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if os.environ["RAY_TMPDIR"] in " ".join(command)]


@pytest.mark.full
def test_a_broken_shard_is_named_and_done_later_by_workers_that_die(prepared, address, tmp_path, capsys, monkeypatch):
    inputs, out = {name: prepared / name for name in ("encoder", "kmeans")}, tmp_path / "out"
    more = [*MORE, "--batch_size", "1"]
    write_corpus(tmp_path / "corpus", {"train": [7, 12, 5, 9, 12, 8, 6, 5, 9], "test": [6, 10, 4]})
    main(["manifest", "--data", str(tmp_path / "corpus"), "--output", str(tmp_path / "manifest")])
    clips = read_manifest(tmp_path / "manifest", "train")
    Path(clips[1].video).write_bytes(b"no video at all")
    broken = {Path(clip.audio): Path(clip.audio).read_bytes() for clip in clips[3:6]}  # of the second shard
    for path in broken:
        path.write_bytes(b"no sound")
    capsys.readouterr()
    message = refused(capsys, options(tmp_path, out, *more, *on_ray(address), "--ray_workers", "1", **inputs))
    end = message.strip().splitlines()[-1]
    assert end.startswith("error: 1 of 6 shards could not be written, the first is train 2/3: "), message
    assert "none of its 3 clips could be read, the first: " in end and clips[3].audio in end
    for name in ("av_clean", "audio_clean"):
        assert records.complete_splits(out / name) == {"test": 3}
        assert len(read(out / name, "test")) == 3
        assert not records.shard_path(out / name, "train", 1, 3).exists()
        assert not (out / name / "train.tsv").exists()
    before = shards_of(out)
    assert len(before) == 10

    for path, content in broken.items():
        path.write_bytes(content)
    monkeypatch.setattr(shards, "Writer", ray_work.MortalWriter)
    main(options(tmp_path, out, *more, *on_ray(address), **inputs))
    *processes, killed = sorted((out / "processes").iterdir())
    assert len(processes) == 2, "one for the shard, and one more for that which was killed"
    assert os.readlink(killed) in [path.name for path in processes]
    shutil.rmtree(out / "processes")
    monkeypatch.undo()
    main(options(tmp_path, tmp_path / "here", *more, **inputs))
    assert_same_datasets(out, tmp_path / "here")
    assert not list(out.rglob(".*.tmp"))
    assert clips[1].video in (out / "av_clean/skipped.jsonl").read_text()
    assert {path: stamp for path, stamp in shards_of(out).items() if path in before} == before

    done = contents(out)
    monkeypatch.setattr(cluster, "map_unordered", None)  # nothing is left to do, so no cluster is asked for
    main(options(tmp_path, out, *more, *on_ray(address), **inputs))
    assert contents(out) == done


def test_items_are_tried_again_but_not_for_ever(address, tmp_path):
    log = tmp_path / "log"
    make = functools.partial(ray_items.calculator, log)
    results = dict(cluster.map_unordered(make, iter(["1", "die", "2", "refuse", "3"]), address=address))
    died, refusal = results.pop("die"), results.pop("refuse")
    assert results == {"1": 1, "2": 4, "3": 9}
    assert isinstance(died, InputError) and str(died).startswith("its worker died 4 times (Actor")
    assert isinstance(refusal, InputError) and str(refusal) == "it is not a number"
    assert sorted(log.read_text().split()) == sorted(["1", "2", "3", "refuse", *4 * ["die"]])


@pytest.mark.full
def test_the_items_of_a_lost_machine_are_done_by_the_others(address, tmp_path):
    log, items = tmp_path / "log", ["wait 1", "wait 2", "wait 3"]

    def lose(process: subprocess.Popen) -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 3:
            time.sleep(0.1)
        for part in (process, *psutil.Process(process.pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                part.kill()
        log.with_name("go").touch()

    make = functools.partial(ray_items.calculator, log)
    with machine(tmp_path / "second", f"--address={address}", "--num-cpus=1") as process:
        losing = threading.Thread(target=lose, args=[process])
        losing.start()
        results = dict(cluster.map_unordered(make, items, address=address))
        losing.join()
    assert results == {item: 0 for item in items}
    assert len(log.read_text().splitlines()) == 4


def test_errors_of_the_program_are_not_hidden(address, tmp_path):
    make = functools.partial(ray_items.calculator, tmp_path / "log")
    with pytest.raises(ValueError, match="invalid literal for int"):
        list(cluster.map_unordered(make, ["1", "one"], address=address, max_workers=1))


def test_a_machine_that_cannot_work_ends_the_run(address, tmp_path):
    with pytest.raises(InputError, match=r"^machine \S+: /nowhere/config.json: no such file$"):
        list(cluster.map_unordered(ray_items.broken, ["1"], address=address))


def test_more_workers_than_there_is_room_for_wait(address, tmp_path):
    make = functools.partial(ray_items.calculator, tmp_path / "log")
    results = dict(cluster.map_unordered(make, map(str, range(4)), address=address, max_workers=2, cpus=2))
    assert results == {str(number): number**2 for number in range(4)}


def test_a_gpu_is_reserved_where_it_is_asked_for(address):
    results = dict(cluster.map_unordered(ray_items.seer, ["A", "B"], address=address, gpu=True))
    (first, second) = results.values()
    assert first == second and first[1] == "0", "one worker for both: there is room for no other"
    results = dict(cluster.map_unordered(ray_items.seer, ["A", "B"], address=address))
    assert len({process for process, _ in results.values()}) == 2


def test_workers_that_are_too_large_are_refused(prepared, address, tmp_path, capsys):
    message = refused(capsys, [*options(prepared, tmp_path, *on_ray(address)), "--workers", "100"])
    # How many there are depends on whether the one that was lost before has been noticed.
    assert "a worker reserves 100 CPUs and 0 GPUs, but none of the " in message
    assert " machines of the Ray cluster has so many" in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--runner", "ray", "--backend", "jax"], "--runner ray goes with --backend torch"),
        (["--ray_address", "auto"], "--ray_address and --ray_workers go with --runner ray"),
        (["--ray_workers", "2"], "--ray_address and --ray_workers go with --runner ray"),
        (["--runner", "ray", "--ray_workers", "0"], "--ray_workers is 0, expected a whole number at least 1"),
        (["--runner", "ray", "--ray_address", "localhost:1"], "the Ray cluster localhost:1 cannot be used"),
        (["--runner", "ray", "--encoder", "/nowhere"], "/nowhere/config.json: no such file"),
    ],
)
def test_unusable_options_are_named(prepared, tmp_path, capsys, more, words):
    assert words in refused(capsys, options(prepared, tmp_path, *more))


def test_only_the_runner_ray_needs_ray(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    message = refused(capsys, options(prepared, tmp_path, "--runner", "ray"))
    assert "Ray is not installed" in message and "pip install 'viavsp-jax[cluster]'" in message
    main(options(prepared, tmp_path))
    assert len(read(tmp_path / "av_clean", "test")) == 3
