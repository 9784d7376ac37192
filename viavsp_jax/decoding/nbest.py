"""The hypotheses of a search, ranked anew by what a CTC head hears, and how likely each word of the best is right.

Exports carry a copy of this file: of the project it imports alignment.py and units.py alone, which they carry, too.

Letters: M hypotheses, W words of the best, T frames, V units with the blank.
"""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from viavsp_jax.data.units import Units
from viavsp_jax.decoding.alignment import LEAST_LIKELIHOOD, Alignment, Lattice, align

_LEAST = -1e4  # of texts of which no path goes through the frames
_SURE = 1e-4  # a probability is no nearer to 0 or 1 than this


@dataclasses.dataclass(frozen=True)
class NBest:
    """The hypotheses of one utterance, best first."""

    texts: tuple[str, ...]
    scores: np.ndarray  # float64[M], log-probabilities / norms
    norms: np.ndarray  # float64[M], of each its length in tokens, the end included, to the power of the length penalty

    @classmethod
    def of(cls, texts: Sequence[str], scores: Sequence[float], norms: Sequence[float]) -> "NBest":
        """From sequences of M."""
        return cls(tuple(texts), np.array(scores, np.float64), np.array(norms, np.float64))

    def likelihoods(self, log_probs: np.ndarray, units: Units) -> np.ndarray:
        """float64[M]: log P(text | CTC), of what a CTC head of these units hears, floating [T, V].

        A word that cannot be written in units is as unlikely as the least likely of units.
        """
        words = [units.of_words(text) for text in self.texts]
        texts = [[unit for word in text for unit in word] for text in words]
        unwritten = np.array([sum(not word for word in text) for text in words])
        found = Lattice(log_probs.astype(np.float64), texts).log_likelihoods() + LEAST_LIKELIHOOD * unwritten
        return np.maximum(found, _LEAST)

    def rescored(self, likelihoods: np.ndarray, weight: float) -> tuple["NBest", np.ndarray]:
        """Ranked by log P(text | language model) + weight · log P(text | CTC), over the norm; and their old places.

        One hypothesis alone stays as it is, and so do several of which none goes through the frames.
        """
        places = np.arange(len(self.texts))
        if len(places) < 2 or likelihoods.max() <= _LEAST:
            return self, places
        scores = self.scores + weight * likelihoods / self.norms
        places = np.argsort(-scores, kind="stable")
        return NBest(tuple(self.texts[i] for i in places), scores[places], self.norms[places]), places

    def agreement(self) -> np.ndarray:
        """float64[W]: the probability, among these hypotheses, of those that have a word of the best in its place."""
        log_probs = self.scores * self.norms
        shares = np.exp(log_probs - log_probs.max())
        words, found = self.texts[0].split(), 0.0
        for text, share in zip(self.texts, shares / shares.sum(), strict=True):
            found = found + share * _in_place(words, text.split())
        return found


@dataclasses.dataclass(frozen=True)
class Confidence:
    """How likely a word is right, by logistic regression on three things that are known of it (its evidence).

    They are the logit of its `agreement`, the log-probability of its weakest unit and that of its text for each unit.
    """

    intercept: float
    agreement: float
    weakest_unit: float
    likelihood: float

    @classmethod
    def of_json(cls, found: dict[str, float] | None) -> "Confidence | None":
        """From its fields. Raises ValueError, TypeError, AttributeError or OverflowError for anything else."""
        if found is None:
            return None
        values = {name: float(value) for name, value in found.items()}
        if not np.isfinite(list(values.values())).all():
            raise ValueError(f"{found} are no finite numbers")
        return cls(**values)

    def __call__(self, evidence: np.ndarray) -> np.ndarray:
        """float64[W, 3] → probabilities float64[W]."""
        logits = self.intercept + evidence @ np.array([self.agreement, self.weakest_unit, self.likelihood])
        return 1 / (1 + np.exp(-np.clip(logits, -50, 50)))


def weight_of(number: float) -> float:
    """How much the CTC head counts. Raises ValueError or TypeError for what is no finite number of at least 0."""
    weight = float(number)
    if not 0 <= weight < np.inf:
        raise ValueError(f"the ctc_weight is {number!r}, expected a finite number of at least 0")
    return weight


def heard_words(nbest: NBest, log_probs: np.ndarray, units: Units) -> tuple[Alignment, np.ndarray]:
    """When the words of the best hypothesis are said, and the evidence for each of them, float64[W, 3].

    `log_probs` are floating [T, V] of the CTC head.
    """
    found = align_text(nbest.texts[0], log_probs, units)
    return found, evidence_of(nbest, found)


def align_text(text: str, log_probs: np.ndarray, units: Units) -> Alignment:
    """The words of a text in what a CTC head of these units hears, floating [T, V]."""
    return align(log_probs.astype(np.float64), units.of_words(text))


def evidence_of(nbest: NBest, alignment: Alignment) -> np.ndarray:
    """float64[W, 3] of the best hypothesis, whose alignment this is; see Confidence."""
    agreement = np.clip(nbest.agreement(), _SURE, 1 - _SURE)
    whole = np.full(len(agreement), alignment.likelihood)
    return np.stack([np.log(agreement / (1 - agreement)), alignment.weakest_units, whole], 1)


def _in_place(words: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """bool[W], which words are among the others, in the same order."""
    found = np.zeros(len(words), bool)
    for block in difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks():
        found[block.a : block.a + block.size] = True
    return found
