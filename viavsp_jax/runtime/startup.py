"""What lets a command start and end sooner: the garbage collector does not go through the libraries again and again."""

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports of large libraries, which leave nothing to be collected."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def end_quickly() -> None:
    """At its end, Python collects what is in cycles before all memory is given back anyway; this leaves that out."""
    atexit.register(gc.freeze)
