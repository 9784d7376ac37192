"""All evaluations of a work folder side by side, and which of them differ from the last one by more than chance."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from viavsp_jax.evaluation import scoring
from viavsp_jax.evaluation.report import results
from viavsp_jax.evaluation.report.analysis import by_task
from viavsp_jax.evaluation.report.results import Report, Reports

Clips = tuple[list[tuple[str, str]], np.ndarray]  # ids and references; their word errors


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much higher a WER is than the last evaluation's, as a fraction, and between which values it lies."""

    wer: float
    interval: list[float]

    @property
    def sure(self) -> bool:
        """Whether the interval leaves no difference out."""
        return self.interval[0] > 0 or self.interval[1] < 0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One of them: where it is kept, what it was made with, and by set its scores and how they differ."""

    name: str
    about: results.About
    scores: dict[str, dict[str, Any]]
    differences: dict[str, Difference]


def compare(workdir: epath.PathLike, kept: Reports, last: str) -> list[Evaluation]:
    """Of each evaluation that is kept, by name; `last` is the one that the others are compared with.

    A set is compared if it is of the same clips, which the tables tell. Raises InputError if a table is damaged.
    """
    workdir = epath.Path(workdir)
    ours = {name: _clips(workdir, last, name) for name in _sets(kept[last])}
    found = []
    for folder, report in sorted(kept.items()):
        scores, differences = _sets(report), {}
        for name in scores.keys() & ours.keys() if folder != last else ():
            mine, theirs = ours[name], _clips(workdir, folder, name)
            if mine and theirs and mine[0] == theirs[0]:
                differences[name] = Difference(*scoring.difference(theirs[1], mine[1]))
        found.append(Evaluation(folder, results.about_of(report), scores, differences))
    return found


def _sets(report: Report) -> dict[str, dict[str, Any]]:
    """Scores by the name of the set."""
    return {results.name_of(key, about): report[key] for key, about in report["evaluations"].items()}


def _clips(workdir: epath.Path, folder: str, name: str) -> Clips | None:
    """Those that are recognised, by id; None if there are none, or the table was deleted."""
    path = workdir / results.PLACE / folder / f"{name}.tsv"
    rows = by_task(results.read_table(path))[0] if path.exists() else []
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row["id"])
    texts = [[row[column] for row in rows] for column in ("reference", "hypothesis")]
    return [(row["id"], row["reference"]) for row in rows], scoring.word_errors(*texts)
