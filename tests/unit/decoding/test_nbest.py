"""Hypotheses ranked by the CTC head, and the confidence of their words, against scikit-learn; what is kept of both."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from viavsp_jax import calibrate
from viavsp_jax.data.vocabulary import learn
from viavsp_jax.decoding import calibration
from viavsp_jax.decoding.alignment import LEAST_LIKELIHOOD, LEAST_UNIT, Lattice, align
from viavsp_jax.decoding.calibration import Calibration
from viavsp_jax.decoding.frames import nbest_of
from viavsp_jax.decoding.nbest import Confidence, NBest, heard_words
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.runtime.errors import InputError

TEXTS = ("nhà có hoa", "nhà có ba hoa", "nhà cá hoa")
UNITS = learn([*TEXTS, "một hai ba"], 20)
SCORES, NORMS = np.log([0.5, 0.3, 0.2]) / [4.0, 5.0, 4.0], np.array([4.0, 5.0, 4.0])


def heard(text: str, sure: float = 0.9, frames_each: int = 2) -> np.ndarray:
    """float64[T, V]: each unit of a text in turn, with a blank behind it, as likely as `sure`."""
    labels = [label for unit in UNITS.of(text) for label in [unit] * frames_each + [0]]
    probs = np.full((len(labels), len(UNITS)), (1 - sure) / (len(UNITS) - 1))
    probs[np.arange(len(labels)), labels] = sure
    return np.log(probs)


def test_what_is_heard_decides_with_weight():
    nbest, frames = NBest.of(TEXTS, SCORES, NORMS), heard(TEXTS[2])
    likelihoods = nbest.likelihoods(frames, UNITS)
    expected = Lattice(frames, [UNITS.of(text).tolist() for text in TEXTS]).log_likelihoods()
    np.testing.assert_allclose(likelihoods, expected)
    same, places = nbest.rescored(likelihoods, 0.0)
    assert same.texts == TEXTS and places.tolist() == [0, 1, 2]
    best, places = nbest.rescored(likelihoods, 1.0)
    assert best.texts[0] == TEXTS[2] and [TEXTS[i] for i in places] == list(best.texts)
    joint = (np.log([0.5, 0.3, 0.2]) + expected) / NORMS
    np.testing.assert_allclose(best.scores, np.sort(joint)[::-1])
    alone = NBest.of(TEXTS[:1], SCORES[:1], NORMS[:1])
    assert alone.rescored(likelihoods[:1], 1.0)[0] is alone


def test_texts_that_do_not_fit_the_frames_keep_their_order():
    nbest = NBest.of(TEXTS, SCORES, NORMS)
    frames = heard("nhà")[:2]
    assert nbest.rescored(nbest.likelihoods(frames, UNITS), 1.0)[0].texts == TEXTS
    places_without = NBest.of(("nhà", "hai"), [-1.0, -np.inf], [2.0, 2.0])
    ranked = places_without.rescored(places_without.likelihoods(heard("hai"), UNITS), 1.0)[0]
    assert ranked.texts == ("nhà", "hai"), "a place of a search where there is no hypothesis stays last"
    np.testing.assert_allclose(ranked.agreement(), [1.0])


def test_words_that_cannot_be_written_are_unlikely():
    nbest = NBest.of(("nhà có hoa", "7 8", ""), [-3.0, -1.0, -9.0], [1.0, 1.0, 1.0])
    found = nbest.likelihoods(heard("nhà có hoa"), UNITS)
    np.testing.assert_allclose(found[1] - found[2], 2 * LEAST_LIKELIHOOD)
    assert nbest.rescored(found, 1.0)[0].texts[0] == "nhà có hoa"


def test_words_agree_by_the_probability_of_texts_that_have_them():
    np.testing.assert_allclose(NBest.of(TEXTS, SCORES, NORMS).agreement(), [1.0, 0.8, 1.0])
    assert NBest.of(("", "nhà"), [-1.0, -2.0], [1.0, 1.0]).agreement().tolist() == []


def test_lengths_are_those_of_tokens_with_their_end():
    tokens = np.array([[5, 6, 2, 2], [5, 6, 7, 8], [2, 2, 2, 2]])
    config = DecodingConfig(max_new_tokens=4, num_beams=3, length_penalty=2.0)
    assert nbest_of("abc", tokens, np.zeros(3), config, (2, 3)).norms.tolist() == [9.0, 16.0, 1.0]
    assert nbest_of("a", tokens[:1], np.zeros(1), config, (2, 3)).norms.tolist() == [1.0], "greedy scores are sums"


def test_evidence_tells_what_is_heard_of_each_word():
    nbest, frames = NBest.of(TEXTS, SCORES, NORMS), heard(TEXTS[2])
    found, evidence = heard_words(nbest, frames, UNITS)
    assert evidence.shape == (3, 3) and np.all(np.diff(found.spans.ravel()) >= 0)
    best = heard_words(nbest.rescored(nbest.likelihoods(frames, UNITS), 1.0)[0], frames, UNITS)[1]
    np.testing.assert_allclose(best[:, 1], np.log(0.9))
    assert evidence[1, 1] < -2 < evidence[0, 1], "có was not said, nhà was"
    (likelihood,) = Lattice(frames, [UNITS.of(TEXTS[0]).tolist()]).log_likelihoods()
    np.testing.assert_allclose(evidence[:, 2], likelihood / len(UNITS.of(TEXTS[0])))


def test_words_without_units_are_doubtful():
    spelled = align(heard("nhà hoa"), [*UNITS.of_words("nhà ŵ hoa")])
    assert spelled.weakest_units[1] == LEAST_UNIT < spelled.weakest_units[[0, 2]].min()
    nothing = heard_words(NBest.of(("ŵ",), [0.0], [1.0]), heard("nhà"), UNITS)[1]
    np.testing.assert_allclose(nothing[0, 1:], [LEAST_UNIT, LEAST_LIKELIHOOD])


def test_the_confidence_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    evidence = rng.normal(size=(500, 3)) * [5, 1, 2] + [3, -1, -2]
    right = rng.random(500) < 1 / (1 + np.exp(-(evidence @ [0.2, 1.0, 0.5] + 1)))
    theirs = make_pipeline(StandardScaler(), LogisticRegression()).fit(evidence, right).predict_proba(evidence)[:, 1]
    np.testing.assert_allclose(calibrate.fit(evidence, right)(evidence), theirs, atol=1e-5)
    assert calibrate.fit(evidence, np.ones(500, bool)) is None and calibrate.fit(evidence[:0], right[:0]) is None
    # What is always the same, as the agreement of one beam is, has no say.
    constant = calibrate.fit(evidence * [0, 1, 1] + [9.2103, 0, 0], right)
    assert constant.agreement == 0 and 0.5 < constant.weakest_unit < 2


def test_a_calibration_is_that_of_its_weights(tmp_path):
    found = Calibration(0.5, Confidence(1.0, 0.1, 0.2, 0.3))
    calibration.write(tmp_path, 400, found, {"weights": 7})
    assert calibration.read(tmp_path, 400, 7) == found
    assert calibration.read(tmp_path, 400, 8) == calibration.read(tmp_path, 300, 7) == Calibration()
    assert found.with_weight(-1.0) == found and found.with_weight(0.0) == Calibration(0.0, found.confidence)
    calibration.write(tmp_path, 400, Calibration(0.3), {"weights": 7})
    assert calibration.read(tmp_path, 400, 7) == Calibration(0.3)


DAMAGED = (
    "",
    "[]",
    "{}",
    '{"weights": 7}',
    '{"weights": 7, "ctc_weight": NaN, "confidence": null}',
    '{"weights": 7, "ctc_weight": -1, "confidence": null}',
    '{"weights": 7, "ctc_weight": 1, "confidence": {"x": 1}}',
    '{"weights": 7, "ctc_weight": 1, "confidence": {"intercept": 1e999}}',
    "[" * 9999,
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_calibration(text, tmp_path):
    calibration.path_of(tmp_path, 400).parent.mkdir()
    calibration.path_of(tmp_path, 400).write_text(text)
    with pytest.raises(InputError, match="calibration/00000400.json: no calibration .*: move it away, or calibrate"):
        calibration.read(tmp_path, 400, 7)


def test_what_is_kept_is_json_for_people(tmp_path):
    calibration.write(tmp_path, 4, Calibration(0.5), {"weights": 7, "names": ["av_clean"]})
    assert json.loads(calibration.path_of(tmp_path, 4).read_text())["names"] == ["av_clean"]
