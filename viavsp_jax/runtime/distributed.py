"""Several processes as one program, one per host: how they find each other, and what happens when one dies."""

import contextlib
import faulthandler
import os
import re
import sys
from collections.abc import Iterator

import jax

from viavsp_jax.runtime.errors import InputError


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of this program; to be called before JAX sees its devices.

    Without arguments the hosts of a TPU slice find each other by themselves, and anything else is one process.

    Args:
      coordinator: `host:port` of process 0, which has to be reachable from all.
      processes: how many there are.
      process: which of them this one is, from 0.

    Raises InputError when only some are given, or when they cannot be right.
    """
    given = (coordinator, processes, process)
    if given == (None, None, None):
        if _on_tpu_slice():
            jax.distributed.initialize()
        return
    if None in given:
        raise InputError("--coordinator, --processes and --process belong together: expected all of them or none")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator is {coordinator}, expected host:port")
    if not 0 <= process < processes:
        raise InputError(f"--process is {process}, expected 0 to {processes - 1}, as --processes is {processes}")
    jax.distributed.initialize(coordinator, processes, process)
    # When the first process is gone, JAX ends the others by itself and says so: no stacks of all threads after that.
    faulthandler.disable()


def _on_tpu_slice() -> bool:
    """Whether there may be other hosts: JAX is to run on TPUs, and the environment does not say that it is alone."""
    # JAX itself sets the platform on a TPU host, unless the user did.
    if "tpu" not in (jax.config.jax_platforms or "").split(","):
        return False
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    # Where no variable names the hosts, JAX asks the cloud's metadata.
    return not hosts or "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ


@contextlib.contextmanager
def others_alive() -> Iterator[None]:
    """Ends this process with a sentence and status 2 when another one of this program is gone."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or (lost := _lost(error)) is None:
            raise
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} cannot go on, another one has died or "
            "cannot be reached: start all of them again, the same command continues from the last checkpoint "
            f"({lost[:200]})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # JAX's own way out waits minutes for the dead


def _lost(error: BaseException | None) -> str | None:
    """What an error, or one that it came from, says of another process that is gone; None if nothing."""
    while error is not None:
        for line in str(error).splitlines():
            if re.search("gloo|heartbeat|coordination service", line, re.IGNORECASE):
                return line
        error = error.__cause__ or error.__context__
    return None
