"""What lets a command start and end soon, and without the words of the libraries that it uses."""

import atexit
import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports of large libraries: the garbage collector would go through all of them again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def end_quickly() -> None:
    """At its end, Python collects what is in cycles before all memory is given back anyway; this leaves that out."""
    atexit.register(gc.freeze)


def quiet_libraries() -> None:
    """For commands: their own progress and messages are enough, and bars of libraries would break theirs."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels that it could use, too
    warnings.filterwarnings("ignore", category=FutureWarning)
