"""Signals that ask a training to end: SIGTERM, as spot TPUs are told, SIGHUP of a closed terminal, SIGINT of Ctrl-C."""

import functools
import os
import signal
import sys
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from viavsp_jax.runtime import programs

# What the process ends with. After Ctrl-C a script is not to go on with its next command.
_STATUS = {signal.SIGTERM: 0, signal.SIGHUP: 0, signal.SIGINT: 128 + signal.SIGINT}


class Preemption:
    """While it is entered, these signals end the process: at once, or after `hold` when it asks and saves.

    With several processes, all hear of it. Ctrl-C ends a process that is about to end at once. SIGHUP and SIGINT that
    the process was started to ignore, as by nohup, are ignored.
    """

    def __enter__(self) -> "Preemption":
        self._held, self._received, self._stop = False, 0, 0  # numbers of signals
        self._heard: jax.Array | None = None  # by any process, when `noticed` was asked the last time
        # JAX has a way of its own, which counts by the update; Orbax asks it, too, and no other count goes beside that.
        ours = [x for x in _STATUS if x == signal.SIGTERM or signal.getsignal(x) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before or signal.SIG_DFL)  # None is a handler that is not Python's

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._held:
            self._received = number
            _say(f"stopped by {name} before the first update: there is nothing to save")
            sys.exit(_STATUS[number])
        if self._received and number == signal.SIGINT:
            _say("ended at once by Ctrl-C: the same command continues from the last checkpoint")
            os._exit(_STATUS[number])  # a checkpoint that is half written does not count
        self._received = self._received or number
        _say(f"{name}: ends after this update and saves it; Ctrl-C ends at once")

    def hold(self) -> None:
        """From now on there is something to save."""
        if self._received:  # and a library dropped what was raised
            sys.exit(_STATUS[self._received])
        self._held = True

    def noticed(self) -> bool:
        """Whether to stop: the same on every process, all of which ask at the same places of the program.

        Where there are several, it is what any of them had heard when this was asked before: the devices tell each
        other while they work on, and nobody waits for it.
        """
        if jax.process_count() == 1:
            self._stop = self._received
            return bool(self._stop)
        if self._heard is not None:
            self._stop = self._stop or int(np.asarray(self._heard))
        flags, largest = _programs()
        own = np.full(jax.local_device_count(), self._received, np.int32)
        self._heard = largest(jax.make_array_from_process_local_data(flags, own))
        return bool(self._stop)

    @property
    def cause(self) -> signal.Signals:
        """The signal that was `noticed`, by whichever process."""
        return signal.Signals(self._stop)

    @property
    def status(self) -> int:
        """What the process is to end with after the signal that was `noticed`."""
        return _STATUS[self.cause]


def _say(text: str) -> None:
    """One line for the user, whatever else is being written."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:  # the terminal is gone, and what is said from now on would end the run
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)


@functools.cache
def _programs() -> tuple[NamedSharding, jax.stages.Wrapped]:
    """How a number for each device lies, and the largest of them."""
    mesh = Mesh(np.array(jax.devices()), ("all",))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("all")), programs.jit(mesh, jnp.max, out_shardings=whole)
