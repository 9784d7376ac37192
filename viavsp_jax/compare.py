"""Runs side by side, of a sweep or with several seeds: python -m viavsp_jax.compare WORKDIR... [--output FILE.tsv]

Each run is a line: the settings in which the runs differ, the best checkpoint, and of the last evaluation its
checkpoint and search, and WER in percent of its sets. Of runs that differ in the seed alone, and were evaluated alike,
mean and standard deviation follow.
"""

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from typing import Any

from etils import epath

from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.evaluation.report.results import read_report, search_of
from viavsp_jax.runtime.atomic import check_writable
from viavsp_jax.runtime.backends import start_devices
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.run_info import flat
from viavsp_jax.runtime.tables import aligned, write_table
from viavsp_jax.settings import completed

# Each of several seeds may be calibrated to a weight of its own.
_WEIGHT = re.compile(r"ctc_weight [\d.e-]+")

Run = dict[str, Any]  # workdir, settings, update, accuracy, evaluated, search, wer by set


def read_run(workdir: epath.PathLike) -> Run:
    """What is compared. Raises InputError if there is no checkpoint, or the evaluation's report is damaged."""
    if not (epath.Path(workdir) / "checkpoints").exists():
        raise InputError(f"{workdir} holds no checkpoints: expected the work folder of a training")
    start_devices()
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best_step()
    # With today's defaults for what its version did not have.
    settings = json.loads(completed(checkpoints.restore_config(step)).to_json())
    run = {
        "workdir": str(workdir),
        "settings": {name: json.dumps(value) for name, value in flat(settings).items()},
        "update": step,
        "accuracy": checkpoints.accuracy(step),
    }
    checkpoints.close()
    if (report := read_report(workdir)) is None:
        return run | {"evaluated": "-", "search": "-", "wer": {}}
    wer = {key: report[key]["wer"] for key in report["analysis"] if "wer" in report[key]}
    return run | {"evaluated": str(report["checkpoint"]), "search": search_of(report), "wer": wer}


def compare(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Lines of a table: the runs, then each group of several that differ in nothing but the seed."""
    names = sorted({name for run in runs for name in run["settings"]})
    differing = [name for name in names if len({run["settings"].get(name) for run in runs}) > 1]
    sets = list(dict.fromkeys(name for run in runs for name in run["wer"]))
    lines = [
        _line(run["workdir"], run, differing, str(run["update"]), f"{run['accuracy']:.4f}",
              {name: f"{100 * wer:.2f}" for name, wer in run["wer"].items()}, sets)
        for run in runs
    ]  # fmt: skip
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        alike = (
            _WEIGHT.sub("ctc_weight", run["search"]),
            *(run["settings"].get(name) for name in differing if name != "seed"),
        )
        groups.setdefault(alike, []).append(run)
    for group in groups.values():
        if len(group) > 1:
            wer = {name: _spread([100 * run["wer"][name] for run in group], 2) for name in sets
                   if all(name in run["wer"] for run in group)}  # fmt: skip
            accuracy = _spread([run["accuracy"] for run in group], 4)
            of_all = group[0] | {"settings": group[0]["settings"] | {"seed": "all"}, "evaluated": ""}
            lines.append(_line(f"mean of {len(group)}", of_all, differing, "", accuracy, wer, sets))
    return lines


def _line(
    name: str, run: Run, differing: Sequence[str], update: str, accuracy: str, wer: dict[str, str], sets: Sequence[str]
) -> dict[str, str]:
    return {
        "run": name,
        **{setting: run["settings"].get(setting, "-").strip('"') for setting in differing},
        "update": update,
        "accuracy": accuracy,
        "evaluated": run["evaluated"],
        "search": run["search"],
        **{f"{key} WER %": wer.get(key, "-") for key in sets},
    }


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


@reported_to_user()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m viavsp_jax.compare", description=__doc__.split(":")[0] + ".")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="work folders of trainings")
    parser.add_argument("--output", help="a file for the table, tab-separated")
    args = parser.parse_args(arguments)
    if args.output:
        check_writable(args.output, "--output")
    once = {epath.Path(workdir).resolve(): workdir for workdir in args.workdirs}
    lines = compare([read_run(workdir) for workdir in once.values()])
    print(aligned([list(lines[0]), *(list(line.values()) for line in lines)]))
    if args.output:
        write_table(epath.Path(args.output), lines)


if __name__ == "__main__":
    main()
