"""Ctrl-C ends a command with a sentence, from its first moment on: loading JAX and PyTorch alone takes seconds."""

import os
import signal
import sys
import threading
from types import TracebackType

STOPPED = "stopped by Ctrl-C: what was finished before is kept"
_AGAIN = 0.1  # seconds


def on_path() -> bool:
    """Whether this process is one of this project's commands that an installation puts on the PATH."""
    return os.path.basename("".join(sys.argv[:1])).startswith("viavsp-")


def report_interrupts() -> None:
    """For this process from now on: no traceback after Ctrl-C, and none of them is lost."""
    sys.excepthook, sys.unraisablehook = _uncaught, _ignored


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(STOPPED, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _ignored(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised in a callback, as JAX has one for the garbage collector: then it is raised again."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        again = threading.Timer(_AGAIN, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)
