"""Starts JAX's devices without the complaints of drivers whose hardware is not there."""

import os
import sys
import tempfile

import jax

_STDERR = 2


def start_devices() -> None:
    """Finds the devices of this process, which is done once.

    Where libtpu is installed and no TPU is there, it writes its complaints straight to the standard error of the
    process; they are kept back unless there is a TPU, or no device at all.
    """
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDERR)
        found = []
        try:
            found = jax.devices()
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            if not found or found[0].platform == "tpu":
                file.seek(0)
                os.write(_STDERR, file.read())
