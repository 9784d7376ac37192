"""Worker processes that read clips: in order, not too far ahead, and what happens when one of them dies."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import deadly_work
import numpy as np
import pytest

from viavsp_jax.data.lost import LostVideo
from viavsp_jax.data.wild import Wild
from viavsp_jax.prepare.features import reading
from viavsp_jax.prepare.features.reading import Changes, Noise, Reader, Talkers
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.workers import WorkerDied, Workers, sign_of_life


@pytest.fixture
def clips(prepared):
    return read_manifest(prepared / "manifest", "train")


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.video == other.video
        for name in ("frames", "audio", "samples", "seen"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_workers_read_what_one_process_reads_in_the_same_order(clips):
    batches = [clips[:3], clips[3:4], clips[4:], clips[::2]] * 5
    added = Noise(Talkers(clips, len(clips)), 0.0, 1)
    with Reader(0) as alone, Reader(2) as workers:
        changed = Changes(noise=added, wild=Wild(10, 1), lost=LostVideo(40, "zeros", 1))
        for how in ((Changes(),), (changed,), (Changes(), "float")):
            for found, expected in zip(workers.read(batches, *how), alone.read(batches, *how), strict=True):
                assert_same(found, expected)
        assert not np.array_equal(found[0].audio, reading.read_media(batches[-1][0]).audio)  # of int16


def test_batches_are_taken_only_a_little_ahead(clips):
    taken = []

    def batches():
        for number in range(50):
            taken.append(number)
            yield clips[:1]

    with Reader(1) as reader:
        for done, _ in enumerate(reader.read(batches()), 1):
            assert len(taken) <= done + 3


def test_a_clip_of_which_workers_die_is_left_out_and_no_other(clips, monkeypatch):
    """Wherever it is in a batch; the process really aborts."""
    monkeypatch.setattr(reading, "_read_batch", deadly_work.read_batch)
    monkeypatch.setenv(deadly_work.DEADLY, clips[2].id)
    batches = [clips[:2], clips[1:4], clips[4:], clips[2:3], clips[3:], clips[:3]]
    with Reader(2) as workers:
        found = list(workers.read(batches))
    reason = f"{clips[2].video}: the process that read this clip died twice (Aborted), expected a video and audio"
    for batch, items in zip(batches, found, strict=True):
        for clip, item in zip(batch, items, strict=True):
            if clip is clips[2]:
                assert item.startswith(reason)
            else:
                assert_same([item], [reading.read_media(clip)])


def test_a_worker_that_is_killed_costs_no_clip(clips):
    """As when memory ends for a moment."""
    with Reader(1) as reader:
        found = reader.read([clips[:1]] * 20)
        items = [next(found)]
        os.kill(reader._all[0]._process.pid, signal.SIGKILL)
        items += found
    assert len(items) == 20
    for (item,) in items:
        assert_same([item], [reading.read_media(clips[0])])


def test_what_takes_too_long_is_ended():
    with Workers(1, seconds=2) as workers:
        with pytest.raises(WorkerDied, match="more than 2 s"):
            workers.submit(workers.do, time.sleep, 60).result()
        with pytest.raises(ValueError, match="invalid literal for int"):  # of the work, not of the process
            workers.do(int, "one")
        assert workers.do(int, "1") == 1
    assert not alive(workers._all[0]._process.pid)


def test_what_takes_long_but_gets_on_is_not_ended():
    work = """
import time
from viavsp_jax.prepare.workers import sign_of_life
for _ in range(5):
    time.sleep(0.5)
    sign_of_life()
"""
    with Workers(1, seconds=2) as workers:
        assert workers.do(exec, work) is None
        assert workers.do(int, "1") == 1
        with pytest.raises(WorkerDied, match="more than 2 s"):
            workers.do(exec, work + "time.sleep(60)")
    sign_of_life()  # elsewhere it does nothing


def alive(process: int) -> bool:
    status = pathlib.Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text(encoding="utf-8").split()[2] != "Z"


def test_workers_end_with_the_process_that_started_them(clips):
    script = """
import os, signal, sys
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.features.reading import Reader
with Reader(1) as reader:
    next(reader.read([read_manifest(sys.argv[1], "train")[:1]]))
    print(reader._all[0]._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    folder = Path(clips[0].video).parents[3] / "manifest"
    result = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    deadline = time.monotonic() + 20
    while alive(int(result.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(result.stdout))


def test_workers_never_hear_of_ctrl_c():
    with Workers(1) as workers:
        assert signal.SIGINT in workers.do(signal.pthread_sigmask, signal.SIG_BLOCK, [])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
