"""When the words of a text are said, and how likely the CTC head finds it, by the lattice of CTC (Graves 2006).

Exports carry a copy of this file: it imports nothing of the project.

Between the units of a text, and before and behind them, any number of frames may be blank, and a unit may last several;
between two equal ones a blank is needed. States of the lattice are blanks and units in turn.

Letters: T frames (25 a second), V units with the blank, M texts, S = 2 L + 1 states for at most L units, W words.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Frames by which a word may be longer, at each end, than those in which its units are found: of these, the head marks
# few, and leaves the rest blank. Where another word is near, they share what is between them.
REACH = 2.5

# Below these, log-probabilities of a unit in its best frame, and of a text for each of its units, tell no more; they
# also stand for words that cannot be written in units and for texts of more units than fit the frames.
LEAST_UNIT, LEAST_LIKELIHOOD = -10.0, -20.0

_NEVER = -1e30  # a log-probability that adds up and stays finite


class Lattice:
    """The paths of several texts through the same frames."""

    def __init__(self, log_probs: np.ndarray, texts: Sequence[Sequence[int]]):
        """Args:
        log_probs: floating [T, V], the first unit is the blank.
        texts: the units of M texts, no blanks among them.
        """
        counts = np.array([len(text) for text in texts])
        units = np.zeros((len(texts), 2 * max(counts, default=0) + 1), np.int64)
        for row, text in zip(units, texts, strict=True):
            row[1 : 2 * len(text) : 2] = text
        self.log_probs, self._units, self._ends = log_probs, units, 2 * counts  # the last state of each text
        # From a unit straight to the next, if that is another one.
        self._skips = np.zeros(units.shape, bool)
        self._skips[:, 3::2] = units[:, 3::2] != units[:, 1:-2:2]

    def _came_from(self, scores: np.ndarray) -> np.ndarray:
        """[M, S] → [3, M, S]: scores of the state itself, the one before and, where that may be left out, the next."""
        one, two = np.full_like(scores, _NEVER), np.full_like(scores, _NEVER)
        one[:, 1:], two[:, 2:] = scores[:, :-1], scores[:, :-2]
        return np.stack([scores, one, np.where(self._skips, two, _NEVER)])

    def _first(self) -> np.ndarray:
        scores = np.full(self._units.shape, _NEVER)
        scores[:, :2] = self.log_probs[0][self._units[:, :2]]
        return scores

    def _last(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores of ending in the last blank, and in the last unit (of a text without units: never)."""
        rows = np.arange(len(scores))
        in_unit = np.where(self._ends > 0, scores[rows, self._ends - 1], _NEVER)
        return scores[rows, self._ends], in_unit

    def log_likelihoods(self) -> np.ndarray:
        """float64[M]: of each text, over all its paths; very low where it has more units than fit the frames."""
        scores = self._first()
        for frame in self.log_probs[1:]:
            scores = np.logaddexp.reduce(self._came_from(scores), axis=0) + frame[self._units]
        return np.logaddexp(*self._last(scores))

    def best_paths(self) -> np.ndarray:
        """int64[M, T]: the state of each frame on the best path of each text."""
        scores, steps = self._first(), []
        for frame in self.log_probs[1:]:
            before = self._came_from(scores)
            steps.append(before.argmax(0))
            scores = before.max(0) + frame[self._units]
        blank, unit = self._last(scores)
        state, rows = np.where(blank >= unit, self._ends, self._ends - 1), np.arange(len(scores))
        path = [state]
        for step in reversed(steps):
            state = state - step[rows, state]
            path.append(state)
        return np.stack(path[::-1], 1)


def fits(units: Sequence[int], frames: int) -> bool:
    """Whether there is a path at all."""
    return len(units) + sum(a == b for a, b in zip(units, units[1:], strict=False)) <= frames


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The words of a text in the frames of an utterance."""

    spans: np.ndarray  # float64[W, 2], the frames in which each begins and ends; one after the other, from 0 to T
    # float64[W], of each word: the log-probability of the unit that is heard least, in the frame where it is heard best
    weakest_units: np.ndarray
    likelihood: float  # log-probability of the text over all its paths, for each of its units


def align(log_probs: np.ndarray, words: Sequence[Sequence[int]]) -> Alignment:
    """Finds the words of a text.

    Args:
      log_probs: floating [T, V] of an utterance.
      words: the units of W words. Those of a word that cannot be written in units are none: it gets the gap between its
        neighbours.

    Where the words have more units than fit the frames, they share them evenly.
    """
    frames, units = len(log_probs), [unit for word in words for unit in word]
    if not fits(units, frames) or not units:
        even = np.stack([np.arange(len(words)), np.arange(1, len(words) + 1)], 1) * frames / max(1, len(words))
        return Alignment(even, np.full(len(words), LEAST_UNIT), LEAST_LIKELIHOOD)
    lattice = Lattice(log_probs, [units])
    (path,), (likelihood,) = lattice.best_paths(), lattice.log_likelihoods()
    in_unit = np.flatnonzero(path % 2)
    numbers, heard = path[in_unit] // 2, np.full(len(units), LEAST_UNIT)
    np.maximum.at(heard, numbers, log_probs[in_unit, np.array(units)[numbers]])
    place, found, weakest = 0, [], []
    for word in words:
        own = in_unit[(numbers >= place) & (numbers < place + len(word))]
        found.append((own[0], own[-1] + 1) if word else (np.nan, np.nan))
        weakest.append(heard[place : place + len(word)].min(initial=0.0) if word else LEAST_UNIT)
        place += len(word)
    spans = _filled(_widened(np.array(found, float), frames), frames)
    return Alignment(spans, np.array(weakest), max(likelihood / len(units), LEAST_LIKELIHOOD))


def _widened(spans: np.ndarray, frames: int) -> np.ndarray:
    """By REACH, or to the middle of the gap to the next word; not into the gap of words without a span."""
    spans, known = spans.copy(), np.flatnonzero(~np.isnan(spans[:, 0]))
    starts, ends = spans[known].T
    gaps = np.where(np.diff(known) == 1, np.minimum((starts[1:] - ends[:-1]) / 2, REACH), 0)
    spans[known, 0] = np.maximum(starts - np.concatenate([[0], gaps]), 0)
    spans[known, 1] = np.minimum(ends + np.concatenate([gaps, [REACH]]), frames)
    return spans


def _filled(spans: np.ndarray, frames: int) -> np.ndarray:
    """The same with words that have no span in the gaps between those that do, sharing them evenly."""
    spans, number = spans.copy(), 0
    while number < len(spans):
        if not np.isnan(spans[number, 0]):
            number += 1
            continue
        last = number
        while last < len(spans) and np.isnan(spans[last, 0]):
            last += 1
        start = spans[number - 1, 1] if number else 0.0
        cuts = np.linspace(start, spans[last, 0] if last < len(spans) else float(frames), last - number + 1)
        spans[number:last] = np.stack([cuts[:-1], cuts[1:]], 1)
        number = last
    return spans
