"""Runs a command that is killed again and again until it is done, as a machine that is taken away kills it."""

import collections
import dataclasses
import os
import pathlib
import random
import re
import signal
import subprocess
import time
from collections.abc import Sequence

KINDS = ("start", "work", "save", "notice")
# By now a process has come to its end, whatever it was at.
_SECONDS = 600
_POLL = 0.002


@dataclasses.dataclass
class Log:
    """What became of a command that was interrupted.

    `kills` counts, by kind: SIGKILL at the `start`, before the first update; while it is at `work`, at any moment;
    while a checkpoint is half written (`save`); and SIGTERM (`notice`), after which it has to end with status 0.
    """

    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    starts: int = 0
    half_written: int = 0  # checkpoints that a kill left so
    notice_seconds: list[float] = dataclasses.field(default_factory=list)  # from SIGTERM to the end


def interrupted(
    command: Sequence[str], workdir: pathlib.Path, kills: Sequence[str], seconds: float, rng: random.Random, **options
) -> Log:
    """Runs a training in `workdir` once for each of `kills`, which are of KINDS, and then to its end.

    Args:
      seconds: the longest that a process is left at work.
      options: of subprocess.Popen.

    Raises AssertionError with what was printed when the command fails, hangs, or says other than it should.
    """
    log = Log()
    for kind in [*kills, None]:
        log.starts += 1
        output = workdir.parent / f"{workdir.name}.log"
        with output.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options)
            hit = _strike(process, output, workdir, kind, seconds, rng) if kind else None
            status = _end_of(process, output)
        text = output.read_text(encoding="utf-8", errors="replace")
        assert status == 0 or (hit is not None and kind != "notice" and status == -signal.SIGKILL), (status, text)
        if status == 0 and "stopped by SIGTERM" not in text:
            return log  # it was done before the signal came
        log.kills[kind] += 1
        log.half_written += bool(_half_written(workdir))
        if kind == "notice":
            log.notice_seconds.append(time.monotonic() - hit)
    raise AssertionError("a run that is not interrupted comes to its end")


def _strike(
    process: subprocess.Popen,
    output: pathlib.Path,
    workdir: pathlib.Path,
    kind: str,
    seconds: float,
    rng: random.Random,
) -> float | None:
    """Sends the signal when its moment has come; the time of that, None if the process was done before."""
    begun, working = time.monotonic(), None
    wait = rng.uniform(0, 4) if kind == "start" else rng.uniform(0, 0.05) if kind == "save" else rng.uniform(0, seconds)
    while process.poll() is None:
        now = time.monotonic()
        if working is None and re.search(r"training from update", output.read_text(encoding="utf-8", errors="replace")):
            working = now  # it said so
        ripe = {
            "start": now - begun > wait,
            "save": working is not None and bool(_half_written(workdir)),
        }.get(kind, working is not None and now - working > wait)
        if ripe:
            if kind == "save":
                time.sleep(wait)
            process.send_signal(signal.SIGTERM if kind == "notice" else signal.SIGKILL)
            return time.monotonic()
        time.sleep(_POLL)
    return None


def _end_of(process: subprocess.Popen, output: pathlib.Path) -> int:
    try:
        return process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it hangs:\n{output.read_text(encoding='utf-8', errors='replace')[-4000:]}") from None


def _half_written(workdir: pathlib.Path) -> list[str]:
    folder = workdir / "checkpoints"
    return [name for name in os.listdir(folder) if not name.isdecimal()] if folder.is_dir() else []
