"""Old names of modules give the modules of today, and say so."""

import importlib
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
