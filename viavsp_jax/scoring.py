"""Word and character error rates, by jiwer.

The corpus rate divides all errors by all reference words (characters); the mean rate averages the clips' own rates.
"""

import unicodedata
from collections.abc import Sequence

import jiwer
import numpy as np


def normalize(text: str) -> str:
    """One spelling of the same text: Unicode NFC, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def score(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Fractions `wer`, `cer` (corpus), `mean_wer`, `mean_cer` (over clips), and the number of `clips`.

    Raises ValueError for no clips, for lists of unequal length or an empty reference.
    """
    if len(references) != len(hypotheses) or not references:
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: expected as many, at least 1")
    pairs = [(normalize(r), normalize(h)) for r, h in zip(references, hypotheses, strict=True)]
    words = [_rate(jiwer.process_words(r, h)) for r, h in pairs]
    characters = [_rate(jiwer.process_characters(r, h)) for r, h in pairs]
    result = {}
    for name, counts in (("wer", words), ("cer", characters)):
        errors, lengths = np.array(counts).T
        result[name] = float(errors.sum() / lengths.sum())
        result[f"mean_{name}"] = float(np.mean(errors / lengths))
    return {**result, "clips": len(pairs)}


def _rate(output: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int]:
    """(errors, length of the reference)."""
    return (
        output.substitutions + output.deletions + output.insertions,
        output.hits + output.substitutions + output.deletions,
    )
