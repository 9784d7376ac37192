"""The one exception that means: the input is wrong, not the program."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(Exception):
    """Bad input. The message is one sentence that names the file, the record and what was expected."""


@contextlib.contextmanager
def reported_to_user() -> Iterator[None]:
    """Wraps a command: an InputError ends the process with its message and status 2, without a traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
