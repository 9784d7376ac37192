"""Whether words are right as often as their confidence says: bins of equal width, and the expected calibration error.

The error is the mean, over all words, of how far the confidence of a bin is from the share of its words that are right
(Guo et al. 2017, arXiv:1706.04599).

Letters: K = 10 bins, [0, 0.1) and so on; the last one includes 1.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from viavsp_jax.evaluation import scoring

BINS = 10
DOUBTED_BELOW = 0.5


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Of some words."""

    words: np.ndarray  # int64[K]
    confidence: np.ndarray  # float64[K], sums
    right: np.ndarray  # int64[K], how many

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(self.words + other.words, self.confidence + other.confidence, self.right + other.right)

    @property
    def error(self) -> float:
        """The expected calibration error, from 0 to 1."""
        return float(np.abs(self.confidence - self.right).sum() / max(1, self.words.sum()))

    def wrong(self, doubted: bool) -> float | None:
        """The share of words below, or from DOUBTED_BELOW on, that are wrong; None if there are none."""
        half = round(DOUBTED_BELOW * BINS)
        part = slice(0, half) if doubted else slice(half, BINS)
        words = int(self.words[part].sum())
        return 1 - float(self.right[part].sum()) / words if words else None

    def as_json(self) -> dict[str, Any]:
        """What report.json holds."""
        lists = {name: value.tolist() for name, value in vars(self).items()}
        return lists | {"error": self.error, "wrong_doubted": self.wrong(True), "wrong_others": self.wrong(False)}


def of_rows(rows: Sequence[dict[str, Any]]) -> Reliability | None:
    """Of the hypotheses of some clips; None unless all of them tell their `confidences`."""
    if not all("confidences" in row for row in rows):
        return None
    told = np.array([float(x) for row in rows for x in row["confidences"].split()])
    right = [word for row in rows for word in scoring.right_words(row["reference"], row["hypothesis"])]
    if not right or len(right) != len(told):
        return None
    place = np.minimum((told * BINS).astype(int), BINS - 1)
    sums = [np.bincount(place, weights, BINS) for weights in (None, told, np.array(right, float))]
    return Reliability(sums[0], sums[1], sums[2].astype(int))


def of_json(part: dict[str, Any]) -> Reliability:
    """What `Reliability.as_json` gave."""
    return Reliability(*(np.array(part[name]) for name in ("words", "confidence", "right")))
