"""All evaluations of a work folder side by side, and which of them differ from the last one by more than chance."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np
from etils import epath

from viavsp_jax.evaluation import scoring
from viavsp_jax.evaluation.report import results
from viavsp_jax.evaluation.report.analysis import by_task
from viavsp_jax.evaluation.report.results import Report, Reports

Clips = tuple[str, np.ndarray]  # a hash of their ids and references; their word errors


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
    place = epath.Path(workdir) / results.PLACE
    found = [Evaluation(name, results.about_of(report), _sets(report), {}) for name, report in sorted(kept.items())]
    for name in _sets(kept[last]):
        ours = _read(place / last / f"{name}.tsv")
        read = {one.name: _read(place / one.name / f"{name}.tsv") for one in found if name in one.scores}
        same = [one for one in found if one.name != last and ours and (x := read.get(one.name)) and x[0] == ours[0]]
        if same:
            differences = scoring.differences(ours[1], [read[one.name][1] for one in same])
            for one, (wer, interval) in zip(same, differences, strict=True):
                one.differences[name] = Difference(wer, interval)
    return found


def _sets(report: Report) -> dict[str, dict[str, Any]]:
    """Scores by the name of the set."""
    return {results.name_of(key, about): report[key] for key, about in report["evaluations"].items()}


def _read(path: epath.Path) -> Clips | None:
    """The clips of a table that are recognised; None if there are none, or the table was deleted."""
    return _clips(path, path.stat().mtime) if path.exists() else None


@functools.cache  # an evaluation of several sets compares after each
def _clips(path: epath.Path, changed: float) -> Clips | None:
    rows = sorted(by_task(results.read_table(path))[0], key=lambda row: row["id"])
    if not rows:
        return None
    texts = [[row[column] for row in rows] for column in ("reference", "hypothesis")]
    said = json.dumps([[row["id"] for row in rows], texts[0]])
    return hashlib.sha256(said.encode()).hexdigest(), scoring.word_errors(*texts)
