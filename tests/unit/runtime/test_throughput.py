"""The account of a run's seconds, on a clock and devices whose times the test sets."""

import threading

import pytest

from viavsp_jax.runtime.throughput import Throughput


class Clock:
    """Stands still until told otherwise, and knows when the thread that watches the devices has read it."""

    def __init__(self):
        self.now, self.read = 0.0, threading.Event()

    def __call__(self) -> float:
        now = self.now
        if threading.current_thread() is not threading.main_thread():
            self.read.set()
        return now


class Update:
    """The result of an update, as jax.block_until_ready sees it."""

    def __init__(self, clock: Clock):
        self.clock, self.over = clock, threading.Event()

    def block_until_ready(self) -> None:
        self.over.wait()

    def finish(self, at: float) -> None:
        """The devices are done with it at this time."""
        self.clock.now = at
        self.clock.read.clear()
        self.over.set()
        assert self.clock.read.wait(60)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    pace = Throughput(clock)
    yield pace
    pace.close()


def host(pace, clock, name, until):
    with pace.phase(name):
        clock.now = until


def dispatch(pace, clock, before=None, done=None):
    """Dispatches an update now; the one before ends at `done` if it has not yet."""
    result = Update(clock)

    def step(state):
        if before:
            before.finish(done)
        return state + 1, result

    assert pace.update(step, 1) == (2, result)
    return result


def three_updates(pace, clock):
    """The first waits for start-up, the second for its data, the third for the second."""
    host(pace, clock, "start-up", 10)
    host(pace, clock, "compile", 30)
    host(pace, clock, "data", 31)
    first = dispatch(pace, clock)
    clock.now = 32
    with pace.phase("data"):
        first.finish(34)  # the devices are idle from here on
        clock.now = 36
    second = dispatch(pace, clock)
    host(pace, clock, "data", 37)  # at no cost
    return dispatch(pace, clock, second, 40)


def test_every_second_is_counted_once(pace, clock):
    third = three_updates(pace, clock)
    # While an update runs, the account ends with the one before.
    expected = {"start-up": 10, "compile": 20, "data": 3, "validation": 0, "checkpoint": 0, "profiler": 0}
    assert pace.seconds() == expected | {"steps": 3 + 4, "other": 0}
    third.finish(45)
    pace.wait()
    host(pace, clock, "validation", 55)
    host(pace, clock, "checkpoint", 57)
    clock.now = 58
    expected |= {"validation": 10, "checkpoint": 2}
    assert pace.seconds() == expected | {"steps": 12, "other": 1}
    assert pace.report() == (
        "goodput 20.7% of 58.0 s: steps 12.0 s, start-up 10.0 s, compile 20.0 s, data 3.0 s, validation 10.0 s, "
        "checkpoint 2.0 s, profiler 0.0 s, other 1.0 s"
    )
    assert sum(pace.seconds().values()) == 58


def test_seconds_of_an_update(pace, clock):
    third = three_updates(pace, clock)
    third.finish(45)
    pace.wait()
    # 30 to 34, 34 to 40, 40 to 45: compilation is not in the first.
    assert pace.interval(clips=30) == {
        "step_seconds_p50": 5.0,
        "step_seconds_p95": pytest.approx(5.9),
        "step_seconds_max": 6.0,
        "clips_per_second": 2.0,
        "waiting_for_data": pytest.approx(3 / 15),
    }
    host(pace, clock, "validation", 100)
    fourth = dispatch(pace, clock)
    fourth.finish(108)
    pace.wait()
    assert pace.interval(clips=4)["step_seconds_max"] == 8, "validation is not in it, nor are the updates before"


def test_a_failing_update_is_reported(pace, clock):
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("device lost")

    pace.update(lambda: (0, Broken()))
    with pytest.raises(RuntimeError, match="device lost"):
        pace.wait()
