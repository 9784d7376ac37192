"""Feeds damaged and hostile files to every reader of files from elsewhere, in processes that may die of it.

    python -m benchmarks.fuzz [--inputs 100000] [--seed 0] [--target NAME ...]
    python -m benchmarks.fuzz --target mp4 --case 123

A file may be read, or refused with an InputError. It is a failure if the reader raises anything else, dies, takes more
than 5 s or more memory than its target allows, or reaches for a program, the network or a file elsewhere. Each input
follows from target, seed and number: the second command repeats one, prints its traceback and keeps the file. The exit
status is 1 if there was a failure. For Linux: memory is read in /proc.
"""

import argparse
import dataclasses
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from viavsp_jax.errors import InputError

if TYPE_CHECKING:
    from benchmarks.fuzz_targets import Target

SECONDS = 5.0
_MB = 2**20
# How often a process is looked at; what it takes in between comes on top of the limits.
_WATCH = 0.02
_FOLDER = "/dev/shm"  # in memory
# What no reader does, as Python reports it (see "Audit events" in the library reference).
_FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn", "socket.connect",
    "socket.getaddrinfo", "urllib.Request", "webbrowser.open",
}  # fmt: skip
# Where libraries read, besides the folder of the input.
_LIBRARIES = (sys.prefix, sys.base_prefix, pathlib.Path(__file__).parents[1], "/proc", "/sys", "/dev", "/usr", "/lib")

# What both sides see of a process at work, an array of doubles; times are of time.monotonic, sizes in bytes.
_CASE, _BEGAN, _BEFORE, _ACCEPTED, _REFUSED, _SLOWEST, _GROWTH, _FIELDS = range(8)


@dataclasses.dataclass(frozen=True)
class Failure:
    """What a reader did with one input."""

    target: str
    case: int
    what: str


@dataclasses.dataclass(frozen=True)
class Result:
    """A row of the table: what became of the inputs of one target."""

    target: str
    inputs: int
    accepted: int
    refused: int
    failures: tuple[Failure, ...]
    slowest_ms: float
    growth_mb: float  # the largest of one input


def fuzz(inputs: int, seed: int, targets: Sequence[str] | None = None) -> list[Result]:
    """Runs about so many inputs, spread over the targets (None: all) by their shares.

    Raises ValueError for a name that is no target's.
    """
    chosen = chosen_targets(targets)
    whole = sum(target.share for target in chosen)
    counts = {target: max(1, round(inputs * target.share / whole)) for target in chosen}
    results = []
    with tqdm(total=sum(counts.values()), unit="input") as progress:
        for target, count in counts.items():
            progress.set_description(target.name)
            results.append(run_target(target, range(count), seed, progress.update))
    return results


def chosen_targets(names: Sequence[str] | None) -> list["Target"]:
    """The targets of these names, or all. Raises ValueError for a name that is no target's."""
    from benchmarks.fuzz_targets import TARGETS  # they import all readers, which takes seconds

    known = {target.name: target for target in TARGETS}
    if unknown := sorted(set(names or ()) - known.keys()):
        raise ValueError(f"no target {', '.join(unknown)}, expected one of {', '.join(known)}")
    return [known[name] for name in names] if names else list(TARGETS)


def run_target(
    target: "Target",
    cases: range,
    seed: int,
    progress: Callable[[int], Any] = lambda done: None,
    keep: str | None = None,
) -> Result:
    """Runs the inputs of these numbers; a process that dies, or has to be killed, is replaced.

    `progress` is called with numbers of inputs done. With a folder to `keep` inputs in, they are also left there, and
    tracebacks are printed. Raises RuntimeError if an undamaged file is not read.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.fuzz_mutations", "benchmarks.fuzz_targets"])
    shared, failures, first = context.RawArray("d", _FIELDS), [], cases.start
    with tempfile.TemporaryDirectory(prefix="fuzz.", dir=_FOLDER) as folder:
        while first < cases.stop:
            shared[_CASE], shared[_BEGAN] = first - 1, 0
            ours, theirs = context.Pipe(duplex=False)
            left = range(first, cases.stop)
            process = context.Process(target=_work, args=(target, folder, seed, left, shared, theirs, keep))
            process.start()
            theirs.close()
            end = _watched(process, target, shared, ours, failures, progress)
            first = int(shared[_CASE]) + 1
            if end:
                failures.append(Failure(target.name, first - 1, end))
            elif process.exitcode:
                raise RuntimeError(f"{target.name}: {failures[-1].what if failures else 'its process could not begin'}")
    accepted, refused, slowest, growth = shared[_ACCEPTED:_FIELDS]
    return Result(
        target.name, len(cases), int(accepted), int(refused), tuple(failures), 1000 * slowest, growth / _MB
    )  # fmt: skip


def _watched(
    process: multiprocessing.Process,
    target: "Target",
    shared: Any,
    results: Connection,
    failures: list[Failure],
    progress: Callable[[int], Any],
) -> str | None:
    """Waits for a process and collects failures; why it ended, or had to be ended, in the middle of an input."""
    done, reason = int(shared[_CASE]), None
    while process.is_alive():
        try:
            while results.poll(_WATCH):
                failures.append(results.recv())
        except EOFError:
            process.join(_WATCH)
        case, began = int(shared[_CASE]), shared[_BEGAN]
        progress(case - done)
        done = case
        if not began or shared[_CASE] != case:
            continue
        grown = memory("VmRSS", process.pid) - shared[_BEFORE]
        if time.monotonic() - began > SECONDS:
            reason = f"took more than {SECONDS:g} s"
            shared[_SLOWEST] = max(shared[_SLOWEST], time.monotonic() - began)
        elif grown > target.memory * _MB:
            reason = f"took {grown / _MB:.0f} MB, more than {target.memory} MB"
            shared[_GROWTH] = max(shared[_GROWTH], grown)
        if reason:
            process.kill()
            process.join()
            return reason
    process.join()
    if not shared[_BEGAN]:
        return None
    code = process.exitcode
    return f"died by {signal.Signals(-code).name}" if code < 0 else f"ended the process with status {code}"


def _work(
    target: "Target", folder: str, seed: int, cases: range, shared: Any, results: Connection, keep: str | None
) -> None:
    """A process that runs inputs."""
    from benchmarks.fuzz_mutations import mutated

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


def _undamaged(target: "Target", whole: pathlib.Path, work: pathlib.Path) -> dict[str, bytes]:
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


def _run(target: "Target", path: pathlib.Path, case: int, shared: Any, reached: list[str]) -> str | None:
    """Runs a reader on one file and counts what became of it; what was wrong, if anything."""
    reached.clear()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    shared[_CASE], shared[_BEFORE], shared[_BEGAN] = case, memory("VmRSS"), time.monotonic()
    what, refused = None, False
    try:
        target.read(path)
    except InputError:
        refused = True
    except BaseException as error:  # also SystemExit, and panics of libraries in Rust
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"raised {type(error).__name__}: {str(error)[:200]} ({pathlib.Path(where.filename).name}:{where.lineno})"
        traceback.print_exc()
    took, grown = time.monotonic() - shared[_BEGAN], memory("VmHWM") - shared[_BEFORE]
    shared[_BEGAN] = 0
    shared[_SLOWEST], shared[_GROWTH] = max(shared[_SLOWEST], took), max(shared[_GROWTH], grown)
    if what is None and reached:
        what = f"reached for {reached[0]}"
    elif what is None and grown > target.memory * _MB:
        what = f"took {grown / _MB:.0f} MB, more than {target.memory} MB"
    elif what is None:
        shared[_REFUSED if refused else _ACCEPTED] += 1
    return what


def memory(field: str, process: int | str = "self") -> int:
    """Bytes of resident memory: VmRSS now, VmHWM at its peak; 0 if the process has ended."""
    try:
        status = pathlib.Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(status.partition(f"{field}:")[2].split(maxsplit=1)[0]) * 1024 if field in status else 0


def _watch_audit(folder: str, shared: Any) -> list[str]:
    """From here on this process runs no programs, and opens no files elsewhere; what an input tried is in the list."""
    allowed = tuple(os.path.realpath(place) + os.sep for place in (folder, *_LIBRARIES))
    reached: list[str] = []

    def hook(event: str, args: tuple) -> None:
        if not shared[_BEGAN]:
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


def table(results: Sequence[Result]) -> str:
    """The results as text, a line for each target."""
    head = (
        f"{'target':14}{'inputs':>9}{'accepted':>10}{'refused':>9}{'failures':>10}{'slowest ms':>12}{'growth MB':>11}"
    )
    rows = [
        f"{x.target:14}{x.inputs:9,}{x.accepted:10,}{x.refused:9,}{len(x.failures):10,}"
        f"{x.slowest_ms:12,.0f}{x.growth_mb:11,.0f}"
        for x in results
    ]
    return "\n".join([head, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: %(default)s)")
    parser.add_argument("--target", nargs="+", metavar="NAME", help="only these targets (default: all)")
    parser.add_argument("--case", type=int, help="repeat the input of this number, of one target")
    args = parser.parse_args(arguments)
    try:
        chosen = chosen_targets(args.target)
    except ValueError as error:
        parser.error(str(error))
    if args.case is not None and len(chosen) != 1:
        parser.error("--case is of one target: give its name with --target")
    start = time.monotonic()
    if args.case is None:
        results = fuzz(args.inputs, args.seed, args.target)
    else:
        keep = tempfile.mkdtemp(prefix="fuzz.case.")
        results = [run_target(chosen[0], range(args.case, args.case + 1), args.seed, keep=keep)]
        print(f"the file is in {keep}")
    for failure in (failure for result in results for failure in result.failures):
        print(f"{failure.target} {failure.case}: {failure.what}")
    print(f"{table(results)}\n{time.monotonic() - start:.0f} s, seed {args.seed}")
    sys.exit(any(result.failures for result in results))


if __name__ == "__main__":
    main()
