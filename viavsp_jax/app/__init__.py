"""From a file with a speaking face to text: see viavsp_jax/transcribe.py for the command and the Python API."""

import contextlib
import sys
from collections.abc import Iterator

from viavsp_jax.runtime.interrupts import on_path


@contextlib.contextmanager
def needs_extra(module: str) -> Iterator[None]:
    """Around imports of what only the extra `app` installs: the command `module` ends with a sentence without them."""
    try:
        yield
    except ModuleNotFoundError as error:
        if module != "__main__" and not on_path():
            raise
        sys.exit(f"error: the package {error.name} is not installed: pip install 'viavsp-jax[app]'")
