"""Signals and a restart, with the real command in processes of its own; and the programs kept between them."""

import os
import re
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from small_run import command, small_config
from tensorboard_events import scalars
from without_torch import without_torch

from viavsp_jax import experiment, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.runtime import compilation_cache, preemption


def start(config, workdir, *flags: str, cache=None, stderr=subprocess.PIPE, **settings) -> subprocess.Popen:
    """The command with the settings of `config` and these; keeps its programs in the folder `cache`, if any."""
    kept = {
        "XDG_CACHE_HOME": str(cache),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # the small programs of a fast machine too
        "JAX_LOG_COMPILES": "true",
    }
    environment = os.environ | (kept if cache else {})
    if cache:
        del environment["JAX_COMPILATION_CACHE_DIR"]  # that all tests share
    run = [*without_torch(command(config, workdir, **settings)), *flags]
    return subprocess.Popen(run, env=environment, stderr=stderr, text=True)


def read_and_stop(process: subprocess.Popen, stopped: subprocess.Popen) -> str:
    """What `process` prints to its end; when it has validated for the first time, SIGTERM is sent to `stopped`."""
    text = ""
    for line in process.stderr:
        text += line
        if "update 2: validation loss" in line:
            time.sleep(0.3)  # so that it comes between two saves, mostly
            stopped.send_signal(signal.SIGTERM)
    return text


def programs(text: str) -> set[str]:
    """The programs that a process took from the cache."""
    return set(re.findall("Persistent compilation cache hit for '(.*?)'", text))


def test_sigterm_saves_and_the_same_command_continues(folders, tmp_path):
    config = small_config(*folders)
    process = start(config, tmp_path / "work", cache=tmp_path / "cache", updates=300)
    text = read_and_stop(process, process)
    assert process.wait() == 0, text
    assert "Traceback" not in text and "jit_train_step" not in programs(text)
    saved = int(re.search(r"stopped by SIGTERM after update (\d+), which is saved: the same command", text)[1])
    assert re.search(r"goodput \d+\.\d% of \d+\.\d s: steps \d", text)
    checkpoints = Checkpoints(tmp_path / "work")
    assert checkpoints.latest_step() == saved >= 2
    if f"update {saved}: validation" not in text:
        assert checkpoints.best_step() < saved, "it was not validated, so it is not the best"

    again = start(config, tmp_path / "work", cache=tmp_path / "cache", updates=saved + 1)
    text = again.communicate()[1]
    assert again.returncode == 0 and f"continuing from update {saved} in" in text, text
    assert programs(text) >= {"jit_train_step", "jit_validation_step"}

    # As without a stop, though the programs come from the cache.
    config.updates = saved + 1
    train.train(config, tmp_path / "whole")
    abstract = experiment.load_experiment(config).trainable
    ends = [Checkpoints(tmp_path / name).restore_trainable(saved + 1, abstract) for name in ("work", "whole")]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    losses = [scalars(tmp_path / name / "tensorboard")["valid/loss"][saved + 1] for name in ("work", "whole")]
    assert losses[0] == losses[1]


def stopped(config, workdir, monkeypatch, at: int, *numbers: int) -> int | None:
    """Trains here; the signals come in update `at`. Returns the status that the process would have ended with."""
    update = train.Trainer.update

    def interrupted(trainer, step, first):
        if step == at:
            for number in numbers:
                signal.raise_signal(number)
        return update(trainer, step, first)

    monkeypatch.setattr(train.Trainer, "update", interrupted)
    before = [signal.getsignal(x) for x in preemption._STATUS]
    try:
        train.train(config, workdir)
    except SystemExit as end:
        return end.code
    finally:
        assert [signal.getsignal(x) for x in preemption._STATUS] == before
    return None


def test_what_is_done_on_other_signals(folders, tmp_path, monkeypatch, capfd):
    """One run, which each of them stops and which goes on after it."""
    config = small_config(*folders)
    config.updates = 8
    # A closed terminal and Ctrl-C save too.
    for at, number, status in ((3, signal.SIGHUP, None), (5, signal.SIGINT, 130)):
        with monkeypatch.context() as patch:
            assert stopped(config, tmp_path, patch, at, number) == status
        text = capfd.readouterr().err
        assert f"{number.name}: ends after this update and saves it; Ctrl-C ends at once" in text
        assert f"stopped by {number.name} after update {at}, which is saved: the same command continues" in text
        assert ("continuing from update 3 in" in text) == (at > 3)
        assert Checkpoints(tmp_path).latest_step() == at

    # The second Ctrl-C ends at once.
    class Ended(BaseException):
        pass

    def end(status):
        raise Ended(status)

    with monkeypatch.context() as patch, pytest.raises(Ended, match="130"):
        patch.setattr(os, "_exit", end)
        stopped(config, tmp_path, patch, 6, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    text = capfd.readouterr().err
    assert "continuing from update 5 in" in text
    assert "ended at once by Ctrl-C: the same command continues from the last" in text

    # What a process was started to ignore is ignored: SIGHUP by nohup, SIGINT by a shell that runs a script's command
    # in the background.
    ignored = (signal.SIGHUP, signal.SIGINT)
    before = [signal.signal(number, signal.SIG_IGN) for number in ignored]
    try:
        with monkeypatch.context() as patch:
            assert stopped(config, tmp_path, patch, 7, *ignored) is None
    finally:
        for number, handler in zip(ignored, before, strict=True):
            signal.signal(number, handler)
    assert Checkpoints(tmp_path).latest_step() == config.updates
    text = capfd.readouterr().err
    assert "continuing from update 5 in" in text and "SIG" not in text

    # After all of them it ends as a run without a stop, bit for bit.
    train.train(config, tmp_path / "whole")
    abstract = experiment.load_experiment(config).trainable
    ends = [Checkpoints(folder).restore_trainable(8, abstract) for folder in (tmp_path, tmp_path / "whole")]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_a_stop_does_not_use_up_patience(folders, tmp_path, monkeypatch, capfd):
    """What it saves is not validated, so nobody knows whether it is better."""
    config = small_config(*folders)
    config.updates, config.checkpoint.every, config.checkpoint.patience, config.optimizer.peak_lr = 9, 1, 2, 1e-12
    with monkeypatch.context() as patch:
        stopped(config, tmp_path, patch, 3, signal.SIGTERM)
    text = capfd.readouterr().err
    assert "stopped by SIGTERM after update 3" in text and "ends at update" not in text
    train.train(config, tmp_path)
    text = capfd.readouterr().err
    assert "continuing from update 3" in text and "ends at update 4: the last 2 checkpoints are no better" in text


@pytest.mark.parametrize(("number", "status"), preemption._STATUS.items())
def test_before_there_is_something_to_save_it_ends_at_once(capfd, number, status):
    with pytest.raises(SystemExit) as caught, preemption.Preemption():
        signal.raise_signal(number)
    assert caught.value.code == status
    sentence = f"stopped by {number.name} before the first update: there is nothing to save\n"
    assert capfd.readouterr().err == sentence


def test_a_terminal_that_is_gone_does_not_end_the_run():
    """Its hang-up comes as SIGHUP, and from then on nothing can be written there."""
    reader, writer = os.openpty()
    kept = os.dup(2)
    try:
        os.dup2(writer, 2)
        os.close(writer)
        os.close(reader)
        with pytest.raises(OSError):
            os.write(2, b"x")
        with preemption.Preemption() as notice:
            notice.hold()
            signal.raise_signal(signal.SIGHUP)
            assert notice.noticed() and notice.cause == signal.SIGHUP and notice.status == 0
        assert os.write(2, b"x") == 1
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_all_processes_stop_when_one_is_told_to(folders, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    config = small_config(*folders)
    with open(tmp_path / "stderr", "w", encoding="utf-8") as file:
        first, second = (
            start(
                config,
                tmp_path / "work",
                f"--coordinator=localhost:{port}",
                "--processes=2",
                f"--process={process}",
                stderr=stderr,
                updates=300,
            )
            for process, stderr in enumerate((subprocess.PIPE, file))
        )
        text = read_and_stop(first, second)
    printed = text + (tmp_path / "stderr").read_text()
    assert (first.wait(), second.wait()) == (0, 0), printed
    saved = int(re.search(r"stopped by SIGTERM after update (\d+), which is saved", text)[1])
    assert printed.count("stopped by SIGTERM") == printed.count("goodput") == 1
    assert Checkpoints(tmp_path / "work").latest_step() == saved >= 2


@pytest.mark.parametrize(
    ("workdir", "folder"),
    [
        ("runs/demo", "/cache/viavsp_jax/programs"),
        ("gs://bucket/run", "gs://bucket/run/compilation_cache"),
    ],
)
def test_where_programs_are_kept(monkeypatch, workdir, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    before = jax.config.jax_compilation_cache_dir
    try:
        for set_before, expected in ((None, folder), ("/mine", "/mine")):
            jax.config.update("jax_compilation_cache_dir", set_before)
            compilation_cache.keep_programs(workdir)
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
