"""A profiler trace of a few updates, for TensorBoard."""

import jax
import ml_collections
from etils import epath

from viavsp_jax.runtime.throughput import Pace


class Profiler:
    """Traces the updates of `config.profile_steps`, (first, last), into the folder `profile` of the work folder.

    Updates that were made before a restart are not traced.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.PathLike):
        steps = config.profile_steps
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._folder = epath.Path(workdir) / "profile"
        self._running = False

    def before(self, step: int, pace: Pace) -> None:
        """To be called before update `step`."""
        if step in self._steps and not self._running:
            pace.wait()  # so that the trace holds whole updates
            with pace.phase("profiler"):
                jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, pace: Pace, final: bool) -> None:
        """To be called after update `step`; `final` when it is this process's last."""
        if self._running and (final or step + 1 not in self._steps):
            pace.wait()
            with pace.phase("profiler"):
                jax.profiler.stop_trace()
            self._running = False
