"""Error rates against counts made by hand and by an independent edit distance."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from viavsp_jax.scoring import normalize, score


def distance(a, b):
    """Levenshtein distance by the textbook recurrence."""
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


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
