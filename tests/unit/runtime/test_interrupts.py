"""Ctrl-C: one sentence and status 130, wherever it comes."""

import importlib
import signal
import sys
import time

import pytest

import viavsp_jax
from viavsp_jax.runtime import interrupts
from viavsp_jax.runtime.errors import reported_to_user

SENTENCE = "stopped by Ctrl-C: what was finished before is kept\n"


@pytest.fixture
def hooks(monkeypatch):
    """Those of the interpreter, which are there again after the test."""
    for name in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, getattr(sys, f"__{name}__"))


def test_a_command_ends_with_a_sentence(capsys):
    with pytest.raises(SystemExit) as caught, reported_to_user():
        signal.raise_signal(signal.SIGINT)
    assert caught.value.code == 130 and capsys.readouterr().err == SENTENCE


def test_so_does_one_that_is_still_being_loaded(hooks, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["-m", "--help"])  # as it is while python -m looks for the module
    importlib.reload(viavsp_jax)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == SENTENCE
    sys.excepthook(ValueError, ValueError("another"), None)
    assert "ValueError: another" in capsys.readouterr().err


def test_a_program_that_imports_the_package_keeps_its_hooks(hooks, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program.py", "-m"])
    importlib.reload(viavsp_jax)
    assert (sys.excepthook, sys.unraisablehook) == (sys.__excepthook__, sys.__unraisablehook__)


def test_what_a_callback_drops_is_raised_again(hooks, capsys):
    class Dropping:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    class Failing:
        def __del__(self):
            raise ValueError("another")

    interrupts.report_interrupts()
    with pytest.raises(KeyboardInterrupt):
        Dropping()
        time.sleep(20)
    assert not capsys.readouterr().err
    Failing()
    assert "ValueError: another" in capsys.readouterr().err
