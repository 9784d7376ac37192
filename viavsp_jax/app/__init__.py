"""From a file with a speaking face to text: see viavsp_jax/transcribe.py for the command and the Python API."""

import contextlib
import logging
import sys
import warnings
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


def quiet_libraries() -> None:
    """For commands: their own progress and messages are enough, and bars of libraries would break theirs."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels that it could use, too
    warnings.filterwarnings("ignore", category=FutureWarning)
