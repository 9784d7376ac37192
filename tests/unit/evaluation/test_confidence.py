"""The calibration error, by hand; reports of hypotheses with confidences."""

import pytest

from viavsp_jax.evaluation.report import confidence, results
from viavsp_jax.evaluation.report.page import make_report, render
from viavsp_jax.runtime.errors import InputError

ABOUT = {"checkpoint": 4, "split": "test", "dtype": "float32", "decoding": {"num_beams": 5}, "ctc_weight": 0.5}


def row(id, reference, hypothesis, told):
    return {"id": id, "reference": reference, "hypothesis": hypothesis, "confidences": told}


ROWS = [
    row("a", "một hai ba", "một hai tư", "0.95 0.85 0.15"),
    row("b", "bốn năm", "bốn", "1.0"),
    row("c", "sáu", "sáu bảy", "0.35 0.4"),
    row("d", "tám", "", ""),
]


def test_the_error_is_the_distance_of_confidence_and_truth():
    found = confidence.of_rows(ROWS)
    assert found.words.tolist() == [0, 1, 0, 1, 1, 0, 0, 0, 1, 2] and found.right.tolist() == [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        1,
        2,
    ]
    assert found.error == pytest.approx((0.15 + 0.65 + 0.4 + 0.15 + 0.05) / 6)
    assert found.wrong(True) == pytest.approx(2 / 3) and found.wrong(False) == 0
    again = confidence.of_json(found.as_json())
    assert again.error == found.error and (again + found).words.sum() == 12
    assert confidence.of_rows([ROWS[1]]).wrong(True) is None


def test_clips_that_do_not_tell():
    assert confidence.of_rows([{"reference": "a", "hypothesis": "a"}]) is None
    assert confidence.of_rows([ROWS[3]]) is None


def test_the_report_shows_each_set_and_all():
    report = make_report(ABOUT, {"av_clean": ROWS, "av_babble_0db": ROWS}, {})
    assert report["analysis"]["av_clean"]["confidence"]["error"] == pytest.approx(1.4 / 6)
    page = render(report, {})
    assert "Confidence of words" in page and "all sets" in page and "calibration error" in page
    assert "ctc_weight 0.5" in page and results.folder_name(ABOUT, {}) == "00000004-test-beam5-ctc0.5-float32"
    assert "Confidence of words" not in render(
        make_report(ABOUT, {"av_clean": [ROWS[0] | {"confidences": ""}]}, {}), {}
    )


@pytest.mark.parametrize("told", ["0.5", "0.5 0.5 1.5", "a b c", "0.5 0.5 -1", "0.5 0.5 nan"])
def test_tables_with_other_confidences(told, tmp_path):
    path = tmp_path / "av_clean.tsv"
    path.write_text(f"id\treference\thypothesis\tconfidences\na\tmột\tmột hai ba\t{told}\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"the confidences of 'a' are .*, expected a number from 0 to 1 for each of its 3"
    ):
        results.read_table(path)
