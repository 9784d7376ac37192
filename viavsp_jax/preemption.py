"""The notice (SIGTERM) that this machine is about to be taken away, as spot TPUs are."""

import functools
import signal
import sys
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Preemption:
    """While it is entered, SIGTERM ends the process with status 0: at once, or after `hold` when it asks and saves.

    With several processes, all hear of it.
    """

    def __enter__(self) -> "Preemption":
        self._held = self._received = self._stop = False
        self._heard: jax.Array | None = None  # of any process, when `noticed` was asked the last time
        # JAX has a way of its own, which counts by the update; Orbax asks it, too, and no other count goes beside that.
        self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)  # None is a handler that is not Python's

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._held:
            print("stopped by SIGTERM before the first update: there is nothing to save", file=sys.stderr, flush=True)
            sys.exit(0)
        self._received = True

    def hold(self) -> None:
        """From now on there is something to save."""
        self._held = True

    def noticed(self) -> bool:
        """Whether to stop: the same on every process, all of which ask at the same places of the program.

        Where there are several, it is what any of them had heard when this was asked before: the devices tell each
        other while they work on, and nobody waits for it.
        """
        if jax.process_count() == 1:
            return self._received
        if self._heard is not None:
            self._stop = self._stop or bool(np.asarray(self._heard))
        flags, exists = _programs()
        own = np.full(jax.local_device_count(), self._received)
        self._heard = exists(jax.make_array_from_process_local_data(flags, own))
        return self._stop


@functools.cache
def _programs() -> tuple[NamedSharding, jax.stages.Wrapped]:
    """How a flag for each device lies, and whether there is one."""
    mesh = Mesh(np.array(jax.devices()), ("all",))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("all")), jax.jit(jnp.any, out_shardings=whole)
