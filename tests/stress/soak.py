"""Hours of training that is killed all the time, with evaluation, export and damaged files in between.

    scripts/demo.sh
    python -m tests.stress.soak --demo runs/demo --workdir runs/soak --minutes 120

First a run of the demo's model without a stop. Then, round after round, the same run in a new folder, killed at random
moments, and so are its evaluation and its export; losses, hypotheses and exported weights have to equal those of the
first, bit for bit. In the same round a process that lives as long as the soak trains on, evaluates, exports and
transcribes; its memory, threads and open files must not grow, nor what all processes leave in the folder for temporary
files. And some thousands of damaged files are read. Ends with a table; the exit status is 1 when anything was not as it
has to be. `rounds.jsonl` in the folder holds a line for each round, soak.svg shows them.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

from tests.stress import fuzz, resident, soak_figure
from tests.stress.interruptions import KINDS, interrupted
from viavsp_jax.evaluation.report.events import read_curves
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.runtime.errors import InputError, reported_to_user

_KILLS = 6  # a round
_AT_WORK = 5.0  # seconds between kills, at most
# A process takes some rounds to reach its size: caches of programs, allocators.
_WARM_UP = 3
_GROWTH = {"rss_mb": 1.10, "threads": 1.05, "files": 1.0, "temporary": 1.0}


def arguments(demo: pathlib.Path, workdir: pathlib.Path, updates: int) -> list[str]:
    """Of the command that trains in `workdir`, for configs/demo.py on the demo's shards."""
    given = {"llm.path": demo / "llm", "data.path": demo / "shards", "updates": updates, "log_every": 1,
             "checkpoint.every": 10, "data.rows": 4, "optimizer.warmup_updates": 5, "optimizer.decay_updates": updates,
             "evaluate.names": "('av_clean',)", "evaluate.rows": 50, "evaluate.decoding.num_beams": 2,
             "evaluate.decoding.max_new_tokens": 24}  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    return ["--config=configs/demo.py", f"--workdir={workdir}", *flags]


def command(demo: pathlib.Path, workdir: pathlib.Path, updates: int) -> list[str]:
    """The command that trains in `workdir`."""
    return [sys.executable, "-m", "viavsp_jax.main", *arguments(demo, workdir, updates)]


def outcome(
    workdir: pathlib.Path, train: list[str], rng: random.Random | None = None
) -> tuple[dict[str, object], collections.Counter]:
    """Evaluates and exports a finished run; its losses by update and the hashes of hypotheses and exported weights.

    With `rng` both commands are killed once before they may come to their end; the second result counts that.
    """
    export, killed = workdir / "export", collections.Counter()
    for name, line in (
        ("evaluation", [*train, "--mode=eval"]),
        ("export", [sys.executable, "-m", "convert.to_hf", "--workdir", str(workdir), "--output", str(export)]),
    ):
        if rng is not None:
            try:
                subprocess.run(line, capture_output=True, timeout=rng.uniform(2, _AT_WORK + 5))
            except subprocess.TimeoutExpired:  # on which it is killed
                killed[name] += 1
        finished = subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace")
        assert finished.returncode == 0, finished.stderr[-4000:]
    curves = read_curves(workdir / "tensorboard")
    names = ("train/loss", "train/accuracy", "valid/loss", "valid/accuracy")
    files = [last_folder(workdir) / "av_clean.tsv", *sorted(export.glob("*.safetensors"))]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return {name: curves[name] for name in names} | hashes, killed


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """What is not equal. Validation of a run that was told to stop in its midst is missing, and only that may be."""
    wrong = []
    for name, value in expected.items():
        other = found[name]
        if name.startswith("valid/"):
            value = {step: loss for step, loss in value.items() if step in other}
            other = {step: loss for step, loss in other.items() if step in value}
        if value != other:
            wrong.append(name)
    return wrong


@dataclasses.dataclass
class Totals:
    """What all rounds came to."""

    rounds: int = 0
    starts: int = 0
    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    half_written: int = 0
    notice_seconds: float = 0.0  # the longest
    inputs: int = 0
    sizes: list[dict[str, float]] = dataclasses.field(default_factory=list)  # of the resident process
    wrong: list[str] = dataclasses.field(default_factory=list)

    def add(self, log, results, size: dict[str, float]) -> None:
        """One round more."""
        self.rounds += 1
        self.starts += log.starts
        self.kills += log.kills
        self.half_written += log.half_written
        self.notice_seconds = max([self.notice_seconds, *log.notice_seconds])
        self.inputs += sum(result.inputs for result in results)
        self.wrong += [str(failure) for result in results for failure in result.failures]
        self.sizes.append(size)

    def growth(self) -> list[str]:
        """What grew of the resident process and of temporary files.

        The largest value of the last third of the rounds is held against that of the first third.
        """
        steady = self.sizes[_WARM_UP:]
        if len(steady) < 3:
            return []
        third, grown = -(-len(steady) // 3), []
        for name, most in _GROWTH.items():
            before, after = (max(size[name] for size in part) for part in (steady[:third], steady[-third:]))
            if after > most * before:
                grown.append(f"{name} grew from {before:g} to {after:g}")
        return grown

    def table(self) -> str:
        """The result for the eye."""
        kills = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        first, last = self.sizes[min(_WARM_UP, len(self.sizes) - 1)], self.sizes[-1]
        lines = {
            "rounds": self.rounds,
            "processes started": self.starts,
            "killed": f"{sum(self.kills.values())} times ({kills})",
            "checkpoints left half written": self.half_written,
            "longest time from SIGTERM to the end": f"{self.notice_seconds:.1f} s",
            "damaged files read": f"{self.inputs:,}",
            "resident process, after warming up → at the end": ", ".join(
                f"{name} {first[name]:g} → {last[name]:g}" for name in first
            ),
            "not as it has to be": len(self.wrong),
        }
        return "\n".join(f"{name:50}{value}" for name, value in lines.items())


def soak(demo: pathlib.Path, workdir: pathlib.Path, minutes: float, updates: int, inputs: int, seed: int) -> Totals:
    """Runs rounds until the time is over, at least one. Raises InputError if `demo` is not a finished demo."""
    if not (demo / "huggingface").exists():
        raise InputError(f"{demo}: no folder of a finished demo, expected what scripts/demo.sh leaves")
    begun, rng, totals = time.monotonic(), random.Random(seed), Totals()
    shutil.rmtree(workdir, ignore_errors=True)
    (workdir / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"] = str((workdir / "tmp").absolute())  # of all processes that are started
    whole = workdir / "whole"
    train = command(demo, whole, updates)
    start = time.monotonic()
    subprocess.run(train, check=True, capture_output=True)
    seconds = time.monotonic() - start
    expected, _ = outcome(whole, train)
    print(f"a run without a stop took {seconds:.0f} s", flush=True)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    life = context.Process(target=resident.live, args=(there, str(demo), str(workdir / "resident"), updates))
    life.start()
    try:
        while not totals.rounds or time.monotonic() - begun < 60 * minutes:
            number, work = totals.rounds, workdir / f"round{totals.rounds}"
            here.send(number)  # works beside what is killed
            kills, before = [rng.choice(KINDS) for _ in range(_KILLS)], len(totals.wrong)
            log = interrupted(command(demo, work, updates), work, kills, _AT_WORK, rng)
            found, killed = outcome(work, command(demo, work, updates), rng)
            log.kills += killed
            totals.wrong += [f"round {number}: {name} is not that of the run without a stop"
                             for name in differences(expected, found)]  # fmt: skip
            left = [path.name for path in (work / "checkpoints").iterdir() if not path.name.isdecimal()]
            totals.wrong += [f"round {number}: {name} was left" for name in left]
            results = fuzz.fuzz(inputs, seed + number)
            totals.add(log, results, here.recv() | {"temporary": sum(1 for _ in (workdir / "tmp").rglob("*"))})
            shutil.rmtree(work)
            with (workdir / "rounds.jsonl").open("a", encoding="utf-8") as file:
                line = {"round": number, "kills": log.kills, "half_written": log.half_written,
                        "notice_seconds": log.notice_seconds, "size": totals.sizes[-1], "wrong": totals.wrong[before:],
                        "minutes": (time.monotonic() - begun) / 60}  # fmt: skip
                file.write(json.dumps(line) + "\n")
            print(
                f"round {number}: {sum(log.kills.values())} kills, {totals.sizes[-1]}",
                *totals.wrong[before:],
                flush=True,
            )
    finally:
        life.kill()
    totals.wrong += totals.growth()
    return totals


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=pathlib.Path, default="runs/demo", help="what scripts/demo.sh made")
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/soak", help="is emptied (default runs/soak)")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--updates", type=int, default=60, help="of each run (default 60)")
    parser.add_argument("--inputs", type=int, default=4000, help="damaged files a round (default 4000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    totals = soak(args.demo, args.workdir, args.minutes, args.updates, args.inputs, args.seed)
    soak_figure.draw(args.workdir / "rounds.jsonl", args.workdir / "soak.svg")
    print(totals.table(), *totals.wrong, sep="\n")
    sys.exit(1 if totals.wrong else 0)


if __name__ == "__main__":
    main()
