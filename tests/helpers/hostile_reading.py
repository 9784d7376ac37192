"""How hostile files are read; shared by the tests of the readers."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.stress.fuzz_worker import memory
from viavsp_jax.runtime.errors import InputError


@contextlib.contextmanager
def limited(megabytes: int) -> Iterator[None]:
    """What is done in it takes less than 5 s of a processor, and no more memory than that at any time."""
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before, start = memory("VmRSS"), time.process_time()
    yield
    assert memory("VmHWM") - before < megabytes * 2**20 and time.process_time() - start < 5


def refused(message: str, read: Callable[..., Any], *args: Any, megabytes: int = 64) -> None:
    """InputError, within 5 s, and without the memory that was asked for."""
    with limited(megabytes), pytest.raises(InputError, match=message):
        read(*args)
