"""What test_shards_ray.py lets the workers of a Ray cluster do; they import it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from viavsp_jax.prepare.features.writing import Writer
from viavsp_jax.runtime.errors import InputError


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

    def read(self, batches, added):
        for number, items in enumerate(self._reader.read(batches, added)):
            if number == 2:  # what was read first is written by now
                try:
                    self._grave.symlink_to(str(os.getpid()))  # by one process only
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            yield items


def calculator(log: Path) -> Callable[[str], int]:
    """Squares numbers; words are obeyed. Each call leaves a line in the log."""

    def work(item: str) -> int:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{item}\n")
        if item == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "refuse":
            raise InputError("it is not a number")
        if item.startswith("wait"):
            while not log.with_name("go").exists():
                time.sleep(0.05)
            return 0
        return int(item) ** 2  # ValueError if it is none

    return work


def seer() -> Callable[[str], tuple[int, str | None]]:
    """Tells which process this is, and which GPUs it sees."""
    return lambda _: (os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def broken() -> Callable:
    raise InputError("/nowhere/config.json: no such file")
