"""The lattice of CTC against PyTorch's loss and against all paths there are; and the spans of words."""

import itertools

import numpy as np
import pytest
import torch

from viavsp_jax.decoding import alignment
from viavsp_jax.decoding.alignment import REACH, Lattice, align, fits

T, V = 6, 4
TEXTS = [[1], [1, 2], [2, 2], [3, 1, 3], [1, 1, 1], [], [1, 2, 3, 1, 2, 3]]


def random_log_probs(seed: int, frames: int = T, units: int = V) -> np.ndarray:
    scores = 3 * np.random.default_rng(seed).normal(size=(frames, units))
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def collapsed(labels) -> list[int]:
    return [label for label, _ in itertools.groupby(labels) if label]


@pytest.mark.parametrize("seed", range(3))
def test_likelihoods_are_those_of_pytorch(seed):
    log_probs = random_log_probs(seed)
    found = Lattice(log_probs, TEXTS).log_likelihoods()
    for text, score in zip(TEXTS, found, strict=True):
        loss = torch.nn.functional.ctc_loss(
            torch.tensor(log_probs)[:, None], torch.tensor([text], dtype=torch.long), torch.tensor([T]),
            torch.tensor([len(text)]), reduction="none",
        )  # fmt: skip
        assert -score == pytest.approx(loss.item(), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_path_is_the_best_of_all_paths(seed):
    log_probs = random_log_probs(seed)
    scores = {labels: log_probs[range(T), labels].sum() for labels in itertools.product(range(V), repeat=T)}
    paths = Lattice(log_probs, TEXTS).best_paths()
    for text, path in zip(TEXTS, paths, strict=True):
        best = max((labels for labels in scores if collapsed(labels) == text), key=scores.get)
        assert [text[state // 2] if state % 2 else 0 for state in path] == list(best)
        assert np.all(np.diff(path) >= 0) and np.all(np.diff(path) <= 2)


def test_what_does_not_fit():
    assert fits([1, 2, 3], 3) and not fits([1, 1], 2) and fits([1, 1], 3) and fits([], 0)
    log_probs = random_log_probs(0, frames=2)
    assert Lattice(log_probs, [[1, 1], [1, 2, 3]]).log_likelihoods().max() < -1e20
    np.testing.assert_allclose(align(log_probs, [(1, 1), (2,)]).spans, [[0, 1], [1, 2]])


def marked(frames: int, places: dict[int, int], units: int = 9) -> np.ndarray:
    """Log-probabilities that are sure of these units in these frames, and of the blank elsewhere."""
    probs = np.full((frames, units), 1e-4)
    probs[range(frames), [places.get(frame, 0) for frame in range(frames)]] = 1
    return np.log(probs / probs.sum(-1, keepdims=True))


def test_spans_of_words():
    log_probs = marked(60, {5: 1, 6: 1, 8: 2, 12: 3, 40: 4, 41: 5})
    spans = align(log_probs, [(1, 2), (3,), (4, 5)]).spans
    # A word begins where its first unit is found; with the next it shares what is between them, or has its reach.
    np.testing.assert_allclose(spans, [[5, 10.5], [10.5, 13 + REACH], [40 - REACH, 42 + REACH]])


def test_words_that_cannot_be_written_get_what_is_between_the_others():
    log_probs = marked(30, {5: 1, 20: 2})
    spans = align(log_probs, [(), (1,), (), (), (2,), ()]).spans
    np.testing.assert_allclose(spans, [[0, 5], [5, 6], [6, 13], [13, 20], [20, 23.5], [23.5, 30]])
    np.testing.assert_allclose(align(log_probs, [(), ()]).spans, [[0, 15], [15, 30]])
    assert align(log_probs, []).spans.shape == (0, 2)


@pytest.mark.parametrize("seed", range(20))
def test_spans_follow_each_other_and_stay_inside(seed):
    rng = np.random.default_rng(seed)
    words = [tuple(rng.integers(1, 9, rng.integers(0, 4))) for _ in range(rng.integers(1, 12))]
    frames = int(rng.integers(1, 60))
    spans = align(random_log_probs(seed, frames, 9), words).spans
    edges = spans.ravel()
    assert len(spans) == len(words) and np.all(np.diff(edges) >= -1e-9) and edges[0] >= 0 and edges[-1] <= frames


def test_units_of_one_text_do_not_depend_on_others():
    log_probs = random_log_probs(5, 30)
    together = Lattice(log_probs, TEXTS).log_likelihoods()
    alone = [Lattice(log_probs, [text]).log_likelihoods()[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert alignment.Lattice(log_probs, [[]]).best_paths().tolist() == [[0] * 30]
