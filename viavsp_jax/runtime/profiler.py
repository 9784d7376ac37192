"""A profiler trace of a few updates, for TensorBoard."""

import os
import pathlib
import shutil
import tempfile

import jax
from etils import epath

from viavsp_jax.runtime.throughput import Throughput


class Profiler:
    """Traces the updates from `steps[0]` to `steps[1]` into the folder `profile` of the work folder; none if it is ().

    Updates that were made before a restart are not traced.
    """

    def __init__(self, steps: tuple[int, ...], workdir: epath.PathLike):
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._folder = epath.Path(workdir) / "profile"
        self._running = False

    def before(self, step: int, throughput: Throughput) -> None:
        """To be called before update `step`."""
        if step in self._steps and not self._running:
            throughput.wait()  # so that the trace holds whole updates
            with throughput.phase("profiler"):
                # Into a bucket the profiler writes in a way of its own; a trace is copied there as all other files are.
                self._local = tempfile.mkdtemp() if "://" in os.fspath(self._folder) else self._folder
                jax.profiler.start_trace(self._local)
            self._running = True

    def after(self, step: int, throughput: Throughput, final: bool) -> None:
        """To be called after update `step`; `final` when it is this process's last."""
        if self._running and (final or step + 1 not in self._steps):
            throughput.wait()
            with throughput.phase("profiler"):
                jax.profiler.stop_trace()
                if self._local != self._folder:
                    for file in filter(pathlib.Path.is_file, pathlib.Path(self._local).rglob("*")):
                        epath.Path(file).copy(self._folder / file.relative_to(self._local))
                    shutil.rmtree(self._local)
            self._running = False
