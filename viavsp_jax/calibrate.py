"""Calibration: on the validation split, how much the CTC head counts among hypotheses, and how likely words are right.

Letters: W words of all best hypotheses.
"""

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from viavsp_jax.decoding import calibration
from viavsp_jax.decoding.alignment import Alignment
from viavsp_jax.decoding.calibration import AS_CALIBRATED, Calibration
from viavsp_jax.decoding.nbest import Confidence, NBest, align_text, evidence_of
from viavsp_jax.evaluation import scoring
from viavsp_jax.evaluation.vietnamese import normalize
from viavsp_jax.hypotheses import ReadyCheckpoint, decoded, load_checkpoint
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime import distributed
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.tables import aligned

SPLIT = "valid"
_LEAST_SPREAD = 1e-6
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)

# A clip's reference, its hypotheses as the search ranks them, how likely the CTC head finds each, float64[M], and the
# alignments of those that are the best by one of the weights.
Clip = tuple[str, NBest, np.ndarray, dict[str, Alignment]]


@distributed.others_alive()
def calibrate(config: ml_collections.ConfigDict, workdir: epath.PathLike, which: str = "best") -> Calibration:
    """Decodes the validation split of every folder of `config.evaluate.names`, and keeps what it tells.

    Of WEIGHTS that is chosen which has the lowest mean of the folders' word error rates, the least of equals; a weight
    that the config tells stays. Then the confidence is fitted to which words of the best hypotheses are right.

    Raises InputError for a checkpoint without a CTC head, where no clip is recognised, or for one beam, which leaves
    nothing to rank.
    """
    c = read_settings(config)
    if not c.ctc.weight:
        raise InputError(
            "config.ctc.weight is 0, expected a training with a CTC head: without one nothing is calibrated"
        )
    setting = c.evaluation.ctc_weight
    if setting == AS_CALIBRATED and c.evaluation.decoding.num_beams == 1:
        raise InputError(
            "config.evaluate.decoding.num_beams is 1, expected several, or config.evaluate.decoding.ctc_weight=0, "
            "as of one hypothesis none can be chosen"
        )
    loaded, weights = load_checkpoint(config, workdir, which, SPLIT, calibrated=False), WEIGHTS
    if setting != AS_CALIBRATED:
        weights = (setting,)
    sets = {name: _clips(loaded, name, weights) for name in c.evaluation.names}
    if not any(sets.values()):
        raise InputError(f"the split {SPLIT} of {', '.join(sets)} has translations alone, expected clips to recognise")
    rates = {weight: _error_rates(sets, weight) for weight in weights}
    weight = min(rates, key=lambda one: np.mean(list(rates[one].values())))  # of equals the first
    evidence, right = _words(sets, weight)
    found = Calibration(weight, fit(evidence, right))
    about = loaded.about | {
        "names": list(sets),
        "wer_by_ctc_weight": {f"{one:g}": by_set for one, by_set in rates.items()},
    }
    if jax.process_index() == 0:
        calibration.write(workdir, loaded.step, found, about)
        print(_table(rates, weight))
        print(_told(found, evidence, right))
        print(f"calibration: {calibration.path_of(workdir, loaded.step)}")
    return found


def _clips(loaded: ReadyCheckpoint, name: str, weights: Sequence[float]) -> list[Clip]:
    """Those of a folder that are recognised."""
    found = []
    for record, nbest, heard in decoded(loaded.experiment, loaded.decode_batch, name, SPLIT, loaded.hearing):
        if record["source_language"] == record["target_language"]:
            units = loaded.hearing.units
            likelihoods = nbest.likelihoods(heard, units)
            # What is heard is not kept: of a large split it would fill the memory.
            best = {nbest.rescored(likelihoods, weight)[0].texts[0] for weight in weights}
            alignments = {text: align_text(text, heard, units) for text in best}
            found.append((normalize(record["transcript"]), nbest, likelihoods, alignments))
    return found


def _error_rates(sets: dict[str, list[Clip]], weight: float) -> dict[str, float]:
    """The word error rate of each folder, in percent."""
    rates = {}
    for name, clips in sets.items():
        if clips:
            best = [nbest.rescored(likelihoods, weight)[0].texts[0] for _, nbest, likelihoods, _ in clips]
            errors, words = scoring.word_errors([reference for reference, *_ in clips], best).sum(0)
            rates[name] = round(100 * float(errors / words), 3)
    return rates


def _words(sets: dict[str, list[Clip]], weight: float) -> tuple[np.ndarray, np.ndarray]:
    """The evidence for each word of the best hypotheses, float64[W, 3], and whether it is right, bool[W]."""
    evidence, right = [np.zeros((0, 3))], []
    for reference, nbest, likelihoods, alignments in (clip for clips in sets.values() for clip in clips):
        best, _ = nbest.rescored(likelihoods, weight)
        evidence.append(evidence_of(best, alignments[best.texts[0]]))
        right += scoring.right_words(reference, best.texts[0])
    return np.concatenate(evidence), np.array(right, bool)


def fit(evidence: np.ndarray, right: np.ndarray) -> Confidence | None:
    """Logistic regression of bool[W] on float64[W, 3]; None where all words are right, or all are wrong."""
    from sklearn.linear_model import LogisticRegression  # training and evaluation do without it

    if right.all() or not right.any():
        return None
    mean, scale = evidence.mean(0), evidence.std(0)
    scale[scale < _LEAST_SPREAD] = np.inf  # what is always the same tells nothing
    model = LogisticRegression().fit((evidence - mean) / scale, right)
    weights = model.coef_[0] / scale
    return Confidence(float(model.intercept_[0] - weights @ mean), *map(float, weights))


def _table(rates: dict[float, dict[str, float]], chosen: float) -> str:
    names = list(next(iter(rates.values())))
    rows = [["CTC weight", *names, "mean WER %", ""]]
    for weight, by_set in rates.items():
        mean = np.mean(list(by_set.values()))
        rows.append(
            [f"{weight:g}", *(f"{by_set[name]:.2f}" for name in names), f"{mean:.2f}", "<" * (weight == chosen)]
        )
    return aligned(rows)


def _told(found: Calibration, evidence: np.ndarray, right: np.ndarray) -> str:
    if found.confidence is None:
        kind = "right" if right.any() else "wrong"
        return f"no confidence: all {len(right)} words are {kind}, expected some of both to learn from"
    told: Any = found.confidence(evidence)
    doubted = told < 0.5
    wrong = [f"{100 * (1 - right[one].mean()):.1f} %" if one.any() else "none" for one in (doubted, ~doubted)]
    return (
        f"confidence of {len(right)} words, {100 * right.mean():.1f} % right: wrong are {wrong[0]} of the "
        f"{doubted.sum()} below 0.5, {wrong[1]} of the others"
    )
