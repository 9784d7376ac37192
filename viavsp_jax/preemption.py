"""The notice (SIGTERM) that this machine is about to be taken away, as spot TPUs are."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM


class Preemption:
    """While it is entered, SIGTERM does not end the process; with several processes, all hear of it."""

    def __enter__(self) -> "Preemption":
        self._received, self._before = False, None
        # jax.distributed listens for the signal itself.
        if not jax.distributed.is_initialized():
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def noticed(self, step: int) -> bool:
        """Whether to stop after update `step`: the same on every process, each of which asks once an update."""
        return self._received or multihost_utils.reached_preemption_sync_point(step)
