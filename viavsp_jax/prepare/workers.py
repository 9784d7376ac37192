"""Processes of this machine, as many as asked for, whatever becomes of one of them.

Each process does one item at a time, so that it is known of which it died: a codec may crash, memory may end.
concurrent.futures gives up all items when one process dies, and does not say which one it was.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Self

_ALIVE = None  # in place of an answer
_to_starter: Connection | None = None  # in a process of Workers, to the one that started it


class WorkerDied(Exception):
    """A process ended, or was ended because it took too long, before it had done what it was asked. Tells of what."""


def sign_of_life() -> None:
    """Long work calls this as it gets on, so that it is not taken to be stuck. Elsewhere it does nothing."""
    if _to_starter is not None:
        _to_starter.send(_ALIVE)


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started meanwhile never hear of Ctrl-C, which the terminal sends to all.

    To ignore it themselves they would first have to be at work.
    """
    resource_tracker.ensure_running()  # to start it undoes what follows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # as a thread is, its children are
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """A number of processes, as a context. `submit` work that calls `do`, which one of them carries out."""

    def __init__(self, count: int, seconds: float | None = None):
        """Given `seconds`, a process that takes longer for one item, or for a part of it, is killed.

        Parts are what lies between signs of life.
        """
        self._count, self._seconds, self._closed = count, seconds, False
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(max(1, count))  # it takes no 0

    def __enter__(self) -> Self:
        self._all = [_Process() for _ in range(self._count)]
        for process in self._all:
            self._free.put(process)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        for process in self._all:
            process.end()
        self._threads.shutdown(cancel_futures=True)

    def submit(self, work: Callable, *args: Any) -> Future:
        """Runs `work(*args)` in a thread of this process as soon as one is free; there is one for each process."""
        return self._threads.submit(work, *args)

    def do(self, work: Callable, *args: Any) -> Any:
        """What `work(*args)` gives in one of the processes, or raises there.

        Raises WorkerDied; another process takes the place of that one.
        """
        process = self._free.get()
        try:
            return process.do(work, args, self._seconds)
        except WorkerDied:
            process.end()
            if not self._closed:
                self._all.remove(process)
                process = _Process()
                self._all.append(process)
            raise
        finally:
            self._free.put(process)


class _Process:
    """One process and the pipe to it."""

    def __init__(self):
        # A fork would copy the threads and locks of PyTorch or JAX in any state they happen to be in.
        context = multiprocessing.get_context("spawn")
        self._pipe, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end,), daemon=True)
        with deaf_to_ctrl_c():
            self._process.start()
        its_end.close()

    def do(self, work: Callable, args: tuple, seconds: float | None) -> Any:
        try:
            self._pipe.send((work, args))
            while (answer := self._received(seconds)) is _ALIVE:
                pass
        except (EOFError, OSError) as broken:
            self._process.join()
            raise WorkerDied(_ending(self._process.exitcode)) from broken
        result, error = answer
        if error is not None:
            raise error
        return result

    def _received(self, seconds: float | None) -> tuple | None:
        if not self._pipe.poll(seconds):
            raise WorkerDied(f"more than {seconds:g} s")
        return self._pipe.recv()

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _ending(code: int) -> str:
    return signal.strsignal(-code) if code < 0 else f"status {code}"


def _serve(pipe: Connection) -> None:
    """Does what it is asked, until the process that started it is gone."""
    global _to_starter
    _to_starter = pipe
    # It may be killed while this process is at work.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            work, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(*args), None
        except Exception as error:  # raised again in the other process
            error.add_note(traceback.format_exc())
            answer = None, error
        pipe.send(answer)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
