"""How the frames of a clip become the positions that the language model reads: each run of frames is averaged into one.

    clusters         runs of frames in one K-Means cluster, as the records tell them (`cluster_counts`)
    clusters+max:K   these, cut into runs of at most K frames
    pool:K           K frames each, whatever they are: needs no clusters

What is left over is shorter. Exports carry a copy of this file: it imports nothing of the project.

Letters: S runs as recorded, P positions, N records.
"""

import dataclasses
import re

import numpy as np

EXPECTED = "clusters, clusters+max:K or pool:K, with a whole number K from 1 to 999999999"
_TEXT = re.compile(r"clusters|(?P<kind>clusters\+max|pool):(?P<most>[1-9][0-9]{0,8})")
# Of names of sets: av_clean_pool3 is av_clean, or audio and video of media_clean, in positions of three frames.
_NAME = re.compile(
    r"(?P<rest>(?:.*/)?(?:av|audio|video|media)_.+)_(?:clusters|(?P<kind>max|pool)(?P<most>[1-9][0-9]{0,8}))"
)


@dataclasses.dataclass(frozen=True)
class Compression:
    """One of the ways above."""

    by_clusters: bool
    most: int = 0  # frames of a position; 0: any number

    @classmethod
    def of(cls, text: str) -> "Compression":
        """As a setting has it. Raises ValueError for other texts."""
        if not (match := _TEXT.fullmatch(text)):
            raise ValueError(f"{text!r} is no compression: expected {EXPECTED}")
        return cls(match["kind"] != "pool", int(match["most"] or 0))

    def __str__(self) -> str:
        if not self.most:
            return "clusters"
        return f"{'clusters+max' if self.by_clusters else 'pool'}:{self.most}"

    @property
    def suffix(self) -> str:
        """Of names of sets and folders."""
        return str(self).replace("clusters+", "").replace(":", "")

    def run_lengths(self, counts: np.ndarray) -> np.ndarray:
        """Frames of each position: int32[S] → int32[P], of the same sum."""
        if not self.by_clusters:
            counts = counts.sum(keepdims=True, dtype=np.int32)
        if not self.most:
            return counts
        pieces = -(-counts // self.most)
        lengths = np.full(pieces.sum(), self.most, np.int32)
        lengths[np.cumsum(pieces) - 1] = counts - (pieces - 1) * self.most
        return lengths

    def positions(self, counts: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """How many positions each of many records becomes: int[N].

        `counts` are the run lengths of all of them, one record after the other, int[ΣS], and `runs` how many of these
        each has, int[N], at least 1.
        """
        if not self.most:
            return runs
        starts = np.cumsum(runs) - runs
        if not self.by_clusters:
            return -(-np.add.reduceat(counts, starts) // self.most)
        return np.add.reduceat(-(-counts // self.most), starts)


CLUSTERS = Compression(True)


def split_name(name: str) -> tuple[str, Compression | None]:
    """The set whose frames become positions in the way that a name tells, and that way; None: as all others do."""
    if not (match := _NAME.fullmatch(name)):
        return name, None
    return match["rest"], Compression(match["kind"] != "pool", int(match["most"] or 0))
