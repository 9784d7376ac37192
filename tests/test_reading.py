"""Worker processes that read clips: in order, not too far ahead, and what happens when one of them dies."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from viavsp_jax.errors import InputError
from viavsp_jax.prepare.manifest import read_manifest
from viavsp_jax.prepare.reading import Noise, Reader, Waveforms


@pytest.fixture
def clips(prepared):
    return read_manifest(prepared / "manifest", "train")


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.video == other.video
        for name in ("frames", "audio", "samples"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_workers_read_what_one_process_reads_in_the_same_order(clips):
    batches = [clips[:3], clips[3:4], clips[4:], clips[::2]] * 5
    added = Noise(Waveforms(clips, len(clips)), 0.0, 1)
    with Reader(0) as alone, Reader(2) as workers:
        for noise in (None, added):
            for found, expected in zip(workers.read(batches, noise), alone.read(batches, noise), strict=True):
                assert_same(found, expected)


def test_batches_are_taken_only_a_little_ahead(clips):
    taken = []

    def batches():
        for number in range(50):
            taken.append(number)
            yield clips[:1]

    with Reader(1) as reader:
        for done, _ in enumerate(reader.read(batches(), None), 1):
            assert len(taken) <= done + 3


def test_a_worker_that_dies_gives_one_sentence(clips):
    with Reader(1) as reader:
        found = reader.read([clips[:1]] * 20, None)
        next(found)
        (worker,) = reader._pool._processes
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(InputError, match=r"train-000.mp4: a worker died while this clip \(id 'train-000'\)"):
            list(found)


def alive(process: int) -> bool:
    status = pathlib.Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"


def test_workers_end_with_the_process_that_started_them(clips):
    script = """
import os, signal, sys
from viavsp_jax.prepare.manifest import read_manifest
from viavsp_jax.prepare.reading import Reader
with Reader(1) as reader:
    next(reader.read([read_manifest(sys.argv[1], "train")[:1]], None))
    print(*reader._pool._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    folder = Path(clips[0].video).parents[3] / "manifest"
    result = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    deadline = time.monotonic() + 20
    while alive(int(result.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(result.stdout))
