"""Scores against counts made by hand, an independent edit distance, jiwer, sacrebleu and scipy."""

import hypothesis.strategies as st
import jiwer
import numpy as np
import pytest
import sacrebleu
import scipy.stats
from edit_distance import distance
from hypothesis import given

from viavsp_jax.evaluation.scoring import align, differences, normalize, rates, score, score_translation, word_errors


def test_corpus_and_mean_rates_differ_as_they_should():
    result = score(["một hai ba bốn", "năm"], ["một hai ba bốn", "sáu"])
    assert result["wer"] == pytest.approx(1 / 5) and result["mean_wer"] == pytest.approx(1 / 2)
    assert result["cer"] == pytest.approx(3 / 17) and result["clips"] == 2


words = st.lists(st.sampled_from(["anh", "em", "hoa", "hoá", "tôi"]), min_size=1, max_size=6)


@given(st.lists(st.tuples(words, st.one_of(words, st.just([]))), min_size=1, max_size=4))
def test_equals_an_independent_edit_distance(pairs):
    result = score([" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs])
    errors = [distance(r, h) for r, h in pairs]
    assert result["wer"] == pytest.approx(sum(errors) / sum(len(r) for r, _ in pairs))
    assert result["mean_wer"] == pytest.approx(
        sum(e / len(r) for e, (r, _) in zip(errors, pairs, strict=True)) / len(pairs)
    )
    characters = [distance(" ".join(r), " ".join(h)) for r, h in pairs]
    assert result["cer"] == pytest.approx(sum(characters) / sum(len(" ".join(r)) for r, _ in pairs))


def test_unicode_form_does_not_count():
    assert normalize("hoa\u0301  \tem ") == "hoá em"
    assert score(["ho\u00e1"], ["hoa\u0301"])["cer"] == 0


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="0 references"):
        score([], [])
    with pytest.raises(ValueError, match="2 references and 1 hyp"):
        score(["a", "b"], ["a"])


@pytest.fixture(scope="module")
def texts():
    """References of 1 to 20 syllables and hypotheses with errors of all kinds, 300 of each."""
    rng, known = np.random.default_rng(5), ["anh", "em", "hoa", "hoá", "tôi", "đi", "chợ", "về", "nhà", "."]

    def heard(words):
        kept = [rng.choice(known) if rng.random() < 0.15 else word for word in words if rng.random() > 0.1]
        return [*kept, *(rng.choice(known, rng.integers(0, 2)))]

    references = [list(rng.choice(known, rng.integers(1, 21))) for _ in range(300)]
    return [" ".join(x) for x in references], [" ".join(heard(x)) for x in references]


def test_counts_are_those_of_jiwer(texts):
    result, expected = score(*texts), jiwer.process_words(*texts)
    for name in ("wer", "substitutions", "deletions", "insertions"):
        assert result[name] == pytest.approx(getattr(expected, name), rel=1e-12)
    assert result["cer"] == pytest.approx(jiwer.cer(*texts), rel=1e-12)
    assert result["words"] == sum(len(text.split()) for text in texts[0]) and result["clips"] == 300
    assert result["mean_cer"] == pytest.approx(np.mean([jiwer.cer(*pair) for pair in zip(*texts, strict=True)]))


def test_aligned_words_are_the_texts(texts):
    for reference, hypothesis, pairs in zip(*texts, align(*texts)[1], strict=True):
        left, right = ([word for word in words if word] for words in zip(*pairs, strict=True))
        assert (" ".join(left), " ".join(right)) == (reference, hypothesis)


@pytest.mark.parametrize("name, columns", {
    "wer": (0, 1), "cer": (2, 3), "mean_wer": (0, 1), "mean_cer": (2, 3)
}.items())  # fmt: skip
def test_intervals_are_those_of_scipy(texts, name, columns):
    """Both ends are off by the draws, each time by some 2 % of the interval."""
    counts = align(*texts)[0]
    errors, lengths = counts.errors()[:, columns].T

    def statistic(errors, lengths, axis):
        return (errors / lengths).mean(axis) if "mean" in name else errors.sum(axis) / lengths.sum(axis)

    expected = scipy.stats.bootstrap(
        (errors, lengths), statistic, paired=True, n_resamples=10_000, method="percentile", rng=1
    ).confidence_interval
    ours, reach = rates(counts)[f"{name}_interval"], expected.high - expected.low
    assert ours == pytest.approx([expected.low, expected.high], abs=0.1 * reach)
    assert ours[0] < rates(counts)[name] < ours[1] and ours == score(*texts)[f"{name}_interval"]


def test_a_difference_is_that_of_scipy(texts):
    references, hypotheses = texts
    others = [reference if i % 3 else hypothesis for i, (reference, hypothesis) in enumerate(zip(*texts, strict=True))]
    mine, theirs = word_errors(references, hypotheses), word_errors(references, others)
    assert (mine == align(*texts)[0].errors()[:, :2]).all()

    def statistic(first, second, lengths, axis):
        return (first.sum(axis) - second.sum(axis)) / lengths.sum(axis)

    expected = scipy.stats.bootstrap(
        (mine[:, 0], theirs[:, 0], mine[:, 1]), statistic, paired=True, n_resamples=10_000, method="percentile", rng=1
    ).confidence_interval
    same, (wer, ends) = differences(theirs, [theirs, mine])
    assert same == (0, [0, 0])
    assert wer == pytest.approx(score(*texts)["wer"] - score(references, others)["wer"])
    assert ends == pytest.approx([expected.low, expected.high], abs=0.1 * (expected.high - expected.low))


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """Clips of 10 words, each word wrong with probability 0.2: 95 % of 200 intervals, give or take 3 deviations."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        wrong = rng.binomial(10, 0.2, 100)
        pairs = [("a " * 10, "b " * n + "a " * (10 - n)) for n in wrong]
        low, high = score(*zip(*pairs, strict=True))["wer_interval"]
        covered += low <= 0.2 <= high
    assert abs(covered / 200 - 0.95) < 3 * (0.95 * 0.05 / 200) ** 0.5


def test_bleu_is_that_of_sacrebleu(texts):
    references, hypotheses = texts
    result, peer = score_translation(references, hypotheses), sacrebleu.BLEU()
    expected = peer.corpus_score(hypotheses, [references], n_bootstrap=2000)
    assert result["bleu"] == pytest.approx(expected.score)
    middle, reach = sum(result["bleu_interval"]) / 2, np.diff(result["bleu_interval"])[0] / 2
    assert middle == pytest.approx(expected._mean, abs=0.2 * expected._ci)
    assert reach == pytest.approx(expected._ci, rel=0.1)
    assert "tok:13a" in result["bleu_signature"]


def test_bleu_without_a_common_word_is_0():
    assert score_translation(["một hai ba"], [""])["bleu"] == 0
    assert score_translation(["một hai ba"], [""])["bleu_interval"] == [0, 0]
