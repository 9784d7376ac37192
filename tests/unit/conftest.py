"""Tests of this tier run in the process of pytest alone: what starts another Python belongs to tests/integration."""

import multiprocessing.util
import subprocess
import sys

import pytest


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    def refuse(*args):
        raise AssertionError("a unit test starts no process: move it to tests/integration")

    popen = subprocess.Popen.__init__

    def start(self, args, *others, **keywords):
        popen(self, refuse() if sys.executable in args else args, *others, **keywords)

    monkeypatch.setattr(subprocess.Popen, "__init__", start)
    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", refuse)
