"""Feeds damaged and hostile files to every reader of files from elsewhere, in processes that may die of it.

    python -m tests.stress.fuzz [--inputs 100000] [--seed 0] [--target NAME ...]
    python -m tests.stress.fuzz --target mp4 --case 123

A file may be read, or refused with an InputError. It is a failure if the reader raises anything else, dies, takes more
than 5 s or more memory than its target allows, or reaches for a program, the network or a file elsewhere. Each input
follows from target, seed and number: the second command repeats one, prints its traceback and keeps the file. The exit
status is 1 if there was a failure. For Linux: memory is read in /proc.
"""

import argparse
import dataclasses
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from tests.stress.fuzz_targets import TARGETS, Target
from tests.stress.fuzz_worker import (
    ACCEPTED,
    BEFORE,
    BEGAN,
    CASE,
    FIELDS,
    GROWTH,
    MB,
    SLOWEST,
    Failure,
    memory,
    run_inputs,
)
from viavsp_jax.runtime.errors import reported_to_user  # fmt: skip
from viavsp_jax.runtime.tables import aligned

SECONDS = 5.0
_START = 120.0  # before the first input
# How often a process is looked at; what it takes in between comes on top of the limits.
_WATCH = 0.02
_FOLDER = "/dev/shm"  # in memory


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


def chosen_targets(names: Sequence[str] | None) -> list[Target]:
    """The targets of these names, or all. Raises ValueError for a name that is no target's."""
    known = {target.name: target for target in TARGETS}
    if unknown := sorted(set(names or ()) - known.keys()):
        raise ValueError(f"no target {', '.join(unknown)}, expected one of {', '.join(known)}")
    return [known[name] for name in names] if names else list(TARGETS)


def run_target(
    target: Target,
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
    context.set_forkserver_preload(["tests.stress.fuzz_worker"])
    shared, failures, first = context.RawArray("d", FIELDS), [], cases.start
    with tempfile.TemporaryDirectory(prefix="fuzz.", dir=_FOLDER) as folder:
        while first < cases.stop:
            shared[CASE], shared[BEGAN] = first - 1, 0
            ours, theirs = context.Pipe(duplex=False)
            left = range(first, cases.stop)
            process = context.Process(target=run_inputs, args=(target, folder, seed, left, shared, theirs, keep))
            process.start()
            theirs.close()
            end = _watched(process, target, shared, ours, failures, progress)
            first = int(shared[CASE]) + 1
            if end:
                failures.append(Failure(target.name, first - 1, end))
            elif process.exitcode:
                raise RuntimeError(f"{target.name}: {failures[-1].what if failures else 'its process could not begin'}")
    accepted, refused, slowest, growth = shared[ACCEPTED:FIELDS]
    return Result(
        target.name, len(cases), int(accepted), int(refused), tuple(failures), 1000 * slowest, growth / MB
    )  # fmt: skip


def _watched(
    process: multiprocessing.Process,
    target: Target,
    shared: Any,
    results: Connection,
    failures: list[Failure],
    progress: Callable[[int], Any],
) -> str | None:
    """Waits for a process and collects failures; why it ended, or had to be ended, in the middle of an input."""
    first, start = int(shared[CASE]) + 1, time.monotonic()
    done, reason = first - 1, None
    while process.is_alive():
        try:
            while results.poll(_WATCH):
                failures.append(results.recv())
        except EOFError:
            process.join(_WATCH)
        case, began = int(shared[CASE]), shared[BEGAN]
        progress(case - done)
        done = case
        if not began and case < first and time.monotonic() - start > _START:
            process.kill()  # run_target says so
        if not began or shared[CASE] != case:
            continue
        grown = memory("VmRSS", process.pid) - shared[BEFORE]
        if time.monotonic() - began > SECONDS:
            reason = f"took more than {SECONDS:g} s"
            shared[SLOWEST] = max(shared[SLOWEST], time.monotonic() - began)
        elif grown > target.memory * MB:
            reason = f"took {grown / MB:.0f} MB, more than {target.memory} MB"
            shared[GROWTH] = max(shared[GROWTH], grown)
        if reason:
            process.kill()
            process.join()
            return reason
    process.join()
    if not shared[BEGAN]:
        return None
    code = process.exitcode
    return f"died by {signal.Signals(-code).name}" if code < 0 else f"ended the process with status {code}"


def table(results: Sequence[Result]) -> str:
    """The results as text, a line for each target."""
    head = ["target", "inputs", "accepted", "refused", "failures", "slowest ms", "growth MB"]
    rows = [
        [
            x.target,
            *(f"{n:,.0f}" for n in (x.inputs, x.accepted, x.refused, len(x.failures), x.slowest_ms, x.growth_mb)),
        ]
        for x in results
    ]
    return aligned([head, *rows])


@reported_to_user()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.fuzz", description=__doc__.split("\n")[0])
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
