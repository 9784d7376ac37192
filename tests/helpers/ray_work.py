"""The stage's own work for the workers of a Ray cluster, one of which is killed; they import it."""

import os
import signal
from pathlib import Path

from viavsp_jax.prepare.features.writing import Writer


class MortalWriter(Writer):
    """Notes each process that writes a shard, and kills the first one (kill -9) when it has written some records."""

    def __init__(self, args, *rest):
        super().__init__(args, *rest)
        self._log = Path(args.output) / "processes"
        self._log.mkdir(parents=True, exist_ok=True)

    def write(self, task, reader, show_progress=False):
        (self._log / str(os.getpid())).touch()
        super().write(task, _MortalReader(reader, self._log / "killed"), show_progress)


class _MortalReader:
    def __init__(self, reader, grave: Path):
        self._reader, self._grave = reader, grave

    def read(self, batches, changes):
        for number, items in enumerate(self._reader.read(batches, changes)):
            if number == 2:  # what was read first is written by now
                try:
                    self._grave.symlink_to(str(os.getpid()))  # by one process only
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            yield items
