"""How hostile files are read; shared by the tests of the readers."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.fuzz import memory
from viavsp_jax.errors import InputError


def refused(message: str, read: Callable[..., Any], *args: Any, megabytes: int = 64) -> None:
    """InputError, within 5 s, and without the memory that was asked for."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.monotonic()
    with pytest.raises(InputError, match=message):
        read(*args)
    assert memory("VmHWM") - before < megabytes * 2**20 and time.monotonic() - start < 5
