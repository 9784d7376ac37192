"""Where the wall time of a run goes: seconds of each update, and goodput."""

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

State, Result = TypeVar("State"), TypeVar("Result")

# What the host may be at while the devices have no update to work on.
PHASES = ("start-up", "compile", "data", "validation", "checkpoint", "profiler")


class Throughput:
    """Runs the updates one ahead, and accounts for every second since it was made.

    A second counts as `steps` while the devices work on an update, whatever the host does meanwhile. Any other second
    is lost: to the phase the host was in, or to `other`. Goodput is the share of `steps`. So data that is read while
    an update runs costs nothing; only the time that the devices had to wait for it is counted as `data`.

    `clock` tells the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._watcher = concurrent.futures.ThreadPoolExecutor(1, "throughput")
        self._running: tuple[float, concurrent.futures.Future[float]] | None = None
        self._start = self._done = clock()  # when the devices were done with the newest finished update
        self._phases: list[tuple[str, float, float]] = []  # since about then
        self._seconds = {"steps": 0.0} | dict.fromkeys(PHASES, 0.0)  # up to then
        self._updates: list[tuple[float, float]] = []  # seconds of each, and those of them spent waiting for data

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Puts what the host does inside under one of PHASES; phases do not nest."""
        begun = self._clock()
        try:
            yield
        finally:
            self._phases.append((name, begun, self._clock()))

    def update(self, step: Callable[..., tuple[State, Result]], *args: Any) -> tuple[State, Result]:
        """Dispatches step(*args) → (state, result), and returns as soon as the update before is done.

        So the devices have their next update waiting whenever they finish one, and no more than two hold their batch.
        """
        begun = self._clock()
        state, result = step(*args)
        # A thread of its own sees when the update is done, since the host may be waiting for data by then. It looks at
        # the result: the buffers of the state are handed on to the next update.
        finished = self._watcher.submit(self._when_done, result)
        self.wait()
        self._running = begun, finished
        return state, result

    def _when_done(self, result: Any) -> float:
        jax.block_until_ready(result)
        return self._clock()

    def wait(self) -> None:
        """Returns when every dispatched update is done."""
        if self._running is None:
            return
        begun, finished = self._running
        done, self._running = finished.result(), None
        lost = self._lost(begun)
        for name, seconds in lost.items():
            self._seconds[name] += seconds
        self._seconds["steps"] += done - max(begun, self._done)
        # A pause that is no part of training is no part of an update's time either.
        pauses = [end for name, _, end in self._phases if name != "data" and end <= begun]
        self._updates.append((done - max([self._done, *pauses]), lost["data"]))
        self._phases = [phase for phase in self._phases if phase[2] > begun]
        self._done = done

    def _lost(self, until: float) -> dict[str, float]:
        """Seconds of each phase since the devices ran out of work."""
        lost = dict.fromkeys(PHASES, 0.0)
        for name, begun, end in self._phases:
            lost[name] += max(0.0, min(end, until) - max(begun, self._done))
        return lost

    def interval(self, **amounts: float) -> dict[str, float]:
        """Of the updates done since the last call: seconds an update, share of waiting, and how much of each a second.

        `amounts` are what these updates took in, such as clips. An update's seconds reach from the end of the one
        before, or of a pause, to its own end.
        """
        seconds, waiting = np.array(self._updates).T
        self._updates = []
        return {
            **{f"step_seconds_p{p}": float(np.percentile(seconds, p)) for p in (50, 95)},
            "step_seconds_max": float(seconds.max()),
            **{f"{name}_per_second": amount / float(seconds.sum()) for name, amount in amounts.items()},
            "waiting_for_data": float(waiting.sum() / seconds.sum()),
        }

    def seconds(self) -> dict[str, float]:
        """Seconds by name: `steps`, PHASES and `other`; up to now, or to the newest end of an update while one runs."""
        until = self._done if self._running else self._clock()
        lost = self._lost(until)
        known = {name: value + lost.get(name, 0.0) for name, value in self._seconds.items()}
        return known | {"other": until - self._start - sum(known.values())}

    def report(self) -> str:
        """Goodput and where the rest went, in one line."""
        seconds = self.seconds()
        total = sum(seconds.values())
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        return f"goodput {seconds['steps'] / total:.1%} of {total:.1f} s: {parts}"

    def close(self) -> None:
        """Ends the thread."""
        self._watcher.shutdown()
