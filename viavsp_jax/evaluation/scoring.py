"""Word and character error rates by jiwer, BLEU by sacrebleu, and how far chance may have moved them.

The corpus rate divides all errors by all reference words (characters); the mean rate averages the clips' own rates.

An interval says between which values 95 % of the scores lie when clips are drawn anew from those at hand, as many as
there are and with replacement (the percentile bootstrap). The draws are the same in every run. They take clips for
independent: of few speakers with many clips each, the truth may lie further away.

Letters: N clips, R resamples.
"""

import dataclasses
from collections.abc import Sequence

import jiwer
import numpy as np
import sacrebleu

from viavsp_jax.evaluation.vietnamese import normalize

RESAMPLES = 2_000
CONFIDENCE = 0.95
# Clips drawn at once: bounds the memory to some 50 MB.
_DRAWN_AT_ONCE = 2_000_000
_KINDS = {"equal": 0, "substitute": 1, "delete": 2, "insert": 3}

# (reference word, hypothesis word); one of them is empty where a word was left out or put in.
AlignedWord = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the rates are made of: int64[N, 4] hits, substitutions, deletions, insertions of each clip."""

    words: np.ndarray
    characters: np.ndarray

    def __getitem__(self, clips: np.ndarray) -> "Counts":
        """Those of some of the clips, by indices or as a mask."""
        return Counts(self.words[clips], self.characters[clips])

    def __len__(self) -> int:
        return len(self.words)

    def errors(self) -> np.ndarray:
        """float64[N, 4]: word errors, reference words, character errors, reference characters."""
        columns = [c[:, part].sum(1) for c in (self.words, self.characters) for part in (slice(1, 4), slice(0, 3))]
        return np.stack(columns, 1).astype(np.float64)


def align(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[Counts, list[list[AlignedWord]]]:
    """Compares N pairs of texts; also gives the words of each, side by side.

    Where several alignments have as few errors, it is one of them, which does not look at what words have in common.

    Raises ValueError for no clips, for lists of unequal length or an empty reference.
    """
    if len(references) != len(hypotheses) or not references:
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: expected as many, at least 1")
    references, hypotheses = [normalize(x) for x in references], [normalize(x) for x in hypotheses]
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    return Counts(_counts(words), _counts(characters)), _aligned(words)


def right_words(reference: str, hypothesis: str) -> list[bool]:
    """Which words of a hypothesis are in their place in the reference, as `align` compares the two."""
    return [word == other for other, word in align([reference], [hypothesis])[1][0] if word]


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> np.ndarray:
    counts = np.zeros((len(output.alignments), 4), np.int64)
    for clip, chunks in enumerate(output.alignments):
        for chunk in chunks:
            size = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            counts[clip, _KINDS[chunk.type]] += size
    return counts


def _aligned(output: jiwer.WordOutput) -> list[list[AlignedWord]]:
    clips = []
    for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        pairs = []
        for chunk in chunks:
            left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            size = max(len(left), len(right))
            pairs += zip(left or [""] * size, right or [""] * size, strict=True)
        clips.append(pairs)
    return clips


def rates(counts: Counts) -> dict[str, float | int | list[float]]:
    """Scores of the clips counted, at least one of them.

    Returns:
      Fractions `wer`, `cer` (corpus), `mean_wer`, `mean_cer` (over clips); for each `<name>_interval`, [low, high];
      numbers of `clips`, reference `words`, `substitutions`, `deletions` and `insertions` of words.
    """
    errors = counts.errors()
    of_clips = errors[:, ::2] / errors[:, 1::2]
    columns = np.concatenate([errors, of_clips], 1)
    whole, drawn = columns.sum(0), resampled_sums(columns)
    result = {}
    for number, name in enumerate(("wer", "cer")):
        corpus, mean = drawn[:, 2 * number] / drawn[:, 2 * number + 1], drawn[:, 4 + number] / len(counts)
        result[name] = float(whole[2 * number] / whole[2 * number + 1])
        result[f"{name}_interval"] = interval(corpus)
        result[f"mean_{name}"] = float(of_clips[:, number].mean())
        result[f"mean_{name}_interval"] = interval(mean)
    hits, substitutions, deletions, insertions = map(int, counts.words.sum(0))
    return {
        **result,
        "clips": len(counts),
        "words": hits + substitutions + deletions,
        "substitutions": substitutions,
        "deletions": deletions,
        "insertions": insertions,
    }


def score(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float | int | list[float]]:
    """The `rates` of N pairs of texts. Raises ValueError as `align` does."""
    return rates(align(references, hypotheses)[0])


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """float64[N, 2]: word errors and reference words of N pairs of texts, as `rates` counts them."""
    words = _counts(jiwer.process_words([normalize(x) for x in references], [normalize(x) for x in hypotheses]))
    return np.stack([words[:, 1:].sum(1), words[:, :3].sum(1)], 1).astype(np.float64)


def differences(ours: np.ndarray, others: Sequence[np.ndarray]) -> list[tuple[float, list[float]]]:
    """How much higher each of the other WERs is, with its interval; all are `word_errors` of the same N clips.

    Each resample draws the same clips for both (the paired bootstrap), so that what is hard for both does not count.
    """
    columns = np.stack([ours[:, 1], *(one[:, 0] - ours[:, 0] for one in others)], 1)
    whole, drawn = columns.sum(0), resampled_sums(columns)
    return [(float(whole[i] / whole[0]), interval(drawn[:, i] / drawn[:, 0])) for i in range(1, len(whole))]


def resampled_sums(values: np.ndarray) -> np.ndarray:
    """Sums over clips that are drawn with replacement, as many as there are: float64[N, K] → float64[R, K]."""
    rng, clips = np.random.default_rng(0), len(values)
    most, sums = max(1, _DRAWN_AT_ONCE // clips), []
    for start in range(0, RESAMPLES, most):
        number = min(most, RESAMPLES - start)
        drawn = rng.integers(clips, size=(number, clips)) + clips * np.arange(number)[:, None]
        times = np.bincount(drawn.ravel(), minlength=number * clips).reshape(number, clips)
        sums.append(times.astype(np.float64) @ values)
    return np.concatenate(sums)


def interval(scores: np.ndarray) -> list[float]:
    """[low, high] of float64[R] scores of resamples, as many of them below as above."""
    outside = (1 - CONFIDENCE) / 2
    return [float(x) for x in np.quantile(scores, [outside, 1 - outside])]


def score_translation(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float | str | list[float]]:
    """BLEU of N pairs of texts, from 0 to 100: `bleu`, `bleu_interval` [low, high] and sacrebleu's `bleu_signature`."""
    references, hypotheses = [normalize(x) for x in references], [normalize(x) for x in hypotheses]
    bleu = sacrebleu.BLEU()
    corpus = bleu.corpus_score(hypotheses, [references])
    # Of a sentence its n-grams are wanted, not the score; without this sacrebleu would warn of the latter.
    counting = sacrebleu.BLEU(effective_order=True)
    of_clips = [counting.sentence_score(h, [r]) for r, h in zip(references, hypotheses, strict=True)]
    drawn = resampled_sums(np.array([[*x.counts, *x.totals, x.sys_len, x.ref_len] for x in of_clips], np.float64))
    order = bleu.max_ngram_order
    scores = [
        bleu.compute_bleu(row[:order], row[order:-2], row[-2], row[-1], bleu.smooth_method).score
        for row in drawn.astype(int).tolist()
    ]
    return {
        "bleu": corpus.score,
        "bleu_interval": interval(np.array(scores)),
        "bleu_signature": str(bleu.get_signature()),
    }
