"""The process of tests/stress/fuzz.py that reads damaged files; it may die of one, or be killed."""

import dataclasses
import os
import pathlib
import random
import shutil
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from tests.stress.fuzz_mutations import mutated
from tests.stress.fuzz_targets import Target
from viavsp_jax.runtime.errors import InputError

MB = 2**20
# What no reader does, as Python reports it (see "Audit events" in the library reference).
_FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn", "socket.connect",
    "socket.getaddrinfo", "urllib.Request", "webbrowser.open",
}  # fmt: skip
# Where libraries read, besides the folder of the input.
_LIBRARIES = (sys.prefix, sys.base_prefix, pathlib.Path(__file__).parents[2], "/proc", "/sys", "/dev", "/usr", "/lib")

# What both sides see of a process at work, an array of doubles; times are of time.monotonic, sizes in bytes.
CASE, BEGAN, BEFORE, ACCEPTED, REFUSED, SLOWEST, GROWTH, FIELDS = range(8)


@dataclasses.dataclass(frozen=True)
class Failure:
    """What a reader did with one input."""

    target: str
    case: int
    what: str


def run_inputs(
    target: Target, folder: str, seed: int, cases: range, shared: Any, results: Connection, keep: str | None
) -> None:
    """What a process does: runs the inputs of these numbers, counts in `shared`, sends each Failure to `results`.

    With a folder to `keep` inputs in, they are also left there, and tracebacks are printed.
    """
    whole, work = pathlib.Path(folder, "whole"), pathlib.Path(folder, "work")
    if keep is None:  # libraries warn of what they find
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.dup2(null, sys.stderr.fileno())
    try:
        contents = _undamaged(target, whole, work)
    except BaseException:
        results.send(Failure(target.name, -1, f"its undamaged files are not read\n{traceback.format_exc()}"))
        raise
    names, reached = list(contents), _watch_audit(folder, shared)
    for case in cases:
        rng = random.Random(f"{target.name}/{seed}/{case}")
        name = rng.choice(names)
        donors = [other for path, other in contents.items() if path[-4:] == name[-4:]]
        _replace(work / name, mutated(name, contents[name], rng, donors))
        if keep:
            shutil.copy(work / name, keep)
        what = _run(target, work / name, case, shared, reached)
        _replace(work / name, contents[name])
        if what:
            results.send(Failure(target.name, case, what))


def _undamaged(target: Target, whole: pathlib.Path, work: pathlib.Path) -> dict[str, bytes]:
    """The target's files by name, made in `whole` and copied to `work`; all of them can be read."""
    if not whole.exists():
        whole.mkdir()
        target.write(whole)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work)
    files = sorted(path for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
    for path in files:
        target.read(work / path.relative_to(whole))
    return {str(path.relative_to(whole)): path.read_bytes() for path in files}


def _replace(path: pathlib.Path, content: bytes) -> None:
    """A new file of the same name: who still has the old one mapped to memory would die if that were cut."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _run(target: Target, path: pathlib.Path, case: int, shared: Any, reached: list[str]) -> str | None:
    """Runs a reader on one file and counts what became of it; what was wrong, if anything."""
    reached.clear()
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak of memory begins anew
    shared[CASE], shared[BEFORE], shared[BEGAN] = case, memory("VmRSS"), time.monotonic()
    what, refused = None, False
    try:
        target.read(path)
    except InputError:
        refused = True
    except BaseException as error:  # also SystemExit, and panics of libraries in Rust
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"raised {type(error).__name__}: {str(error)[:200]} ({pathlib.Path(where.filename).name}:{where.lineno})"
        traceback.print_exc()
    took, grown = time.monotonic() - shared[BEGAN], memory("VmHWM") - shared[BEFORE]
    shared[BEGAN] = 0
    shared[SLOWEST], shared[GROWTH] = max(shared[SLOWEST], took), max(shared[GROWTH], grown)
    if what is None and reached:
        what = f"reached for {reached[0]}"
    elif what is None and grown > target.memory * MB:
        what = f"took {grown / MB:.0f} MB, more than {target.memory} MB"
    elif what is None:
        shared[REFUSED if refused else ACCEPTED] += 1
    return what


def memory(field: str, process: int | str = "self") -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at its peak; 0 if the process has ended."""
    try:
        status = pathlib.Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(status.partition(f"{field}:")[2].split(maxsplit=1)[0]) * 1024 if field in status else 0


def _watch_audit(folder: str, shared: Any) -> list[str]:
    """From here on this process runs no programs, and opens no files elsewhere; what an input tried is in the list."""
    allowed = tuple(os.path.realpath(place) + os.sep for place in (folder, *_LIBRARIES))
    reached: list[str] = []

    def hook(event: str, args: tuple) -> None:
        if not shared[BEGAN]:
            return
        if event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            if path.startswith(allowed):
                return
            event = f"the file {path}"
        elif event not in _FORBIDDEN:
            return
        reached.append(event)
        raise PermissionError(event)

    sys.addaudithook(hook)
    return reached
