"""Old names of modules give the modules of today, and say so."""

import importlib
import subprocess
import sys

import pytest
from places import ROOT

from viavsp_jax.runtime.renamed import RENAMED


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_the_module_itself(old):
    assert not (ROOT / f"{old.replace('.', '/')}.py").exists()
    sys.modules.pop(old, None)
    with pytest.warns(UserWarning, match=f"^{old} is now {RENAMED[old]}; the old name will stop working"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(RENAMED[old]) and module.__spec__.name == RENAMED[old]


def test_the_notice_names_the_line_that_imports():
    command = [sys.executable, "-c", "from viavsp_jax.errors import InputError\nprint(InputError.__module__)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "viavsp_jax.runtime.errors\n"
    assert done.stderr.startswith("<string>:1: UserWarning: viavsp_jax.errors is now viavsp_jax.runtime.errors")
