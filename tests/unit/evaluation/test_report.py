"""The report of an evaluation: its parts against counts made by hand, its page as a browser takes it."""

import json
import re
import unicodedata

import hypothesis.strategies as st
import jiwer
import pytest
from hypothesis import given, settings
from report_pages import Page, row
from tensorboard_events import scalars

from viavsp_jax.evaluate import score_table
from viavsp_jax.evaluation.report import analysis
from viavsp_jax.evaluation.report.comparison import compare
from viavsp_jax.evaluation.report.events import read_curves
from viavsp_jax.evaluation.report.page import make_report, render, write_report
from viavsp_jax.evaluation.report.results import folder_of, read_all
from viavsp_jax.evaluation.vietnamese import TONES
from viavsp_jax.runtime.tables import write_table
from viavsp_jax.runtime.tensorboard import Writer

ABOUT = {"checkpoint": 300, "split": "test"}


ROWS = [
    row("a_1", "Hoà có 25 con bò.", "hòa có hai mươi lăm con bò nhé", 1.5),  # as heard, one word added
    row("a_2", "má ăn cá", "mà ăn gà", 2.0),
    row("b_1", "trời mưa to quá", "chời mưa", 5.0),
    row("b_2", "đẹp", "", 30.0),
]
CHANNELS = {"a_1": "kênh a", "a_2": "kênh a", "b_1": "kênh <b>"}
FOLDERS = {
    "av_clean": ROWS,
    "video_clean": ROWS,
    "audio_babble_0db": ROWS[1:],
    "audio_babble_-5db": ROWS[2:],
    "av_babble_0db": ROWS[:2],
    "elsewhere": ROWS[:1],
    "av_english": [row("c_1", "the cat sat on the mat", "the cat sat on a mat", target="en"), ROWS[0]],
    "av_french": [row("d_1", "le chat est là ce soir", "le chat est là ce matin", target="fr")],
}


@pytest.fixture(scope="module")
def report():
    return make_report(ABOUT, FOLDERS, CHANNELS)


def write_curves(folder, *runs):
    """Event files of runs, each {step: loss}, as the training writes them; the names tell the order."""
    for number, run in enumerate(runs):
        writer = Writer(folder / f"run{number}", {})
        for step, loss in run.items():
            writer.write(step, {"train/loss": loss, "valid/loss": loss + 1, "train/learning_rate": 1e-4 * step})
        writer.close()
        (path,) = (folder / f"run{number}" / "tensorboard").glob("events.*")
        (folder / "tensorboard").mkdir(exist_ok=True)
        path.rename(folder / "tensorboard" / f"events.out.tfevents.{1000 + number}.host")
    return folder / "tensorboard"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, report):
    """A work folder after an evaluation."""
    folder = tmp_path_factory.mktemp("work")
    write_curves(folder, {10: 3.0, 20: 2.0, 30: 9.0}, {30: 1.0, 40: 0.5})
    for name, rows in FOLDERS.items():
        write_table(folder_of(folder, ABOUT) / f"{name}.tsv", rows)
    write_report(folder, report)
    return folder


def test_sums_of_a_folder(report):
    """7, 3, 4 and 1 words with 1, 2, 3 and 1 errors."""
    part = report["analysis"]["av_clean"]
    sums = part["spoken_form"]
    assert (sums["words"], sums["substitutions"], sums["deletions"], sums["insertions"]) == (15, 3, 3, 1)
    assert sums["wer"] == pytest.approx(7 / 15) and sums["mean_wer"] == pytest.approx((1 / 7 + 2 / 3 + 3 / 4 + 1) / 4)
    texts = [[row[column] for row in ROWS] for column in ("reference", "hypothesis")]
    assert report["av_clean"]["wer"] == pytest.approx(jiwer.wer(*texts)) and report["av_clean"]["words"] == 13
    assert part["differences"] == dict.fromkeys(analysis.DIFFERENCES, 0) | {"tone": 1, "onset": 1, "onset+tone": 1}
    assert part["confused"][0] == {"reference": "má", "hypothesis": "mà", "count": 1} and len(part["confused"]) == 3
    assert [entry["word"] for entry in part["deleted"]] == ["to", "quá", "đẹp"]
    assert part["inserted"] == [{"word": "nhé", "count": 1}]


def test_tones_of_a_folder(report):
    """hòa có hai mươi lăm con bò, ăn and mưa are right; má → mà, cá → gà, trời → chời keep or change theirs."""
    level, grave, *_ = order = list(TONES.values())
    acute = order.index("sắc")
    expected = [[0] * 6 for _ in range(6)]
    expected[order.index(level)][0] = 6
    expected[1][order.index(grave)] = 3
    expected[acute][acute], expected[acute][1] = 1, 2
    assert report["analysis"]["av_clean"]["tones"] == expected


def test_groups_of_a_folder(report):
    part = report["analysis"]["av_clean"]
    lengths, channels = part["lengths"], part["channels"]
    assert lengths["unit"] == "seconds"
    assert [(x["from"], x["to"], x["clips"], x["words"]) for x in lengths["groups"]] == [
        (0, 2, 1, 7), (2, 4, 1, 3), (4, 6, 1, 4), (12, None, 1, 1),
    ]  # fmt: skip
    assert [(x["channel"], x["clips"], x["wer"]) for x in channels] == [
        ("not in the mapping", 1, 1.0), ("kênh <b>", 1, 0.75), ("kênh a", 2, pytest.approx(3 / 10)),
    ]  # fmt: skip
    untimed = analysis.analyse("av_clean", [{**row, "seconds": ""} for row in ROWS], {})
    assert untimed["lengths"]["unit"] == "words" and "channels" not in untimed
    assert [(x["from"], x["to"], x["clips"]) for x in untimed["lengths"]["groups"]] == [(1, 6, 3), (6, 11, 1)]


def test_channels_and_noise_in_every_unicode_form():
    nfd = unicodedata.normalize("NFD", "á")
    part = analysis.analyse("av_ồn_0db", [row(nfd, "a", "a"), row("e", "a", "a")], {"á": "a", "e": "b"})
    assert [channel["channel"] for channel in part["channels"]] == ["a", "b"]
    assert analysis.condition(unicodedata.normalize("NFD", "av_ồn_0db")) == part["condition"]
    assert part["condition"]["noise"] == "ồn"


def test_clips_of_a_folder(report):
    part = report["analysis"]["av_clean"]
    assert [clip["id"] for clip in part["worst"]] == ["b_2", "b_1", "a_2", "a_1"] and part["best"] == []
    assert part["worst"][2]["words"] == [("má", "mà"), ("ăn", "ăn"), ("cá", "gà")]
    texts = ["một hai"[: 3 + 4 * (i % 2)] for i in range(20)]
    part = analysis.analyse("av", [row(f"x{i:02}", x, x if i < 10 else "") for i, x in enumerate(texts)], {})
    assert {clip["id"] for clip in part["worst"]} == {f"x{i}" for i in range(10, 20)}
    assert [(clip["id"], clip["wer"]) for clip in part["best"]] == [(f"x0{i}", 0.0) for i in (1, 3, 5, 7, 9)]


def test_a_reference_without_a_word_is_compared_as_it_is():
    part = analysis.analyse("av_clean", [row("x", "…", "!"), row("y", "một", "một")], {})
    assert (part["spoken_form"]["words"], part["spoken_form"]["deletions"]) == (2, 1)


@pytest.mark.parametrize("name, expected", {
    "av_clean": ("av", None, None), "audio_babble_0db": ("audio", "babble", 0), "av_b_c_-2.5db": ("av", "b_c", -2.5),
}.items())  # fmt: skip
def test_conditions_by_the_name(name, expected):
    assert tuple(analysis.condition(name).values()) == expected
    assert analysis.condition(f"x{name}") == analysis.condition(f"{name}x") == {}


def test_translation_is_scored_by_bleu(report):
    mixed, translated = report["av_english"], report["av_french"]
    assert (mixed["clips"], mixed["translated_clips"], mixed["words"]) == (2, 1, 5) and 0 < mixed["bleu"] < 100
    assert "wer" not in translated and "spoken_form" not in report["analysis"]["av_french"]
    lines = score_table({name: report[name] for name in FOLDERS}).splitlines()
    assert (
        f"{translated['bleu']:.2f}" in lines[-1] and lines[-1].split()[2:6] == ["-"] * 4 and max(map(len, lines)) <= 100
    )


def test_page_holds_what_the_report_holds(workdir):
    text = (workdir / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    report = json.loads((workdir / "report.json").read_text(encoding="utf-8"))
    for name in FOLDERS:
        assert name in page.texts
        for value in [report[name]["wer"]] if "wer" in report[name] else []:
            assert f"{100 * value:.2f}" in page.texts
    assert {"≠ mà", "−", "+", "kênh <b>", "hòa", "Loss, nats per token", "Learning rate", "WER, %: babble"} <= set(
        page.texts
    )
    assert report["av_french"]["bleu_signature"] in page.texts


def test_page_needs_nothing_else(workdir):
    text = (workdir / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.links and all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not re.search(r"url\((?!#)|@import|<script", text) and len(set(page.ids)) == len(page.ids)


def test_evaluations_side_by_side(tmp_path):
    """Three of the same clips: all right, one word of 400 wrong, 50 wrong; the last one is all right, too."""
    said = [row(f"c{number:03}", "một hai ba bốn", "một hai ba bốn") for number in range(100)]
    others = [x | {"reference": "một hai ba năm"} for x in said]

    def wrong(every):
        return [x | {"hypothesis": "một hai ba năm"} if not i % every else x for i, x in enumerate(said)]

    for step, tables in {
        100: {"av_clean": said, "av_noise": others}, 200: {"av_clean": wrong(100)}, 300: {"av_clean": wrong(2)},
        400: {"av_clean": said[::-1], "av_noise": said},
    }.items():  # fmt: skip
        about = ABOUT | {"checkpoint": step}
        for name, rows in tables.items():
            write_table(folder_of(tmp_path, about) / f"{name}.tsv", rows)
        write_report(tmp_path, make_report(about, tables, {}))
    kept = read_all(tmp_path)
    same, chance, worse, last = (one.differences for one in compare(tmp_path, kept, "00000400-test"))
    assert {*same} == {*chance} == {*worse} == {"av_clean"} and not last
    assert (same["av_clean"].wer, same["av_clean"].interval, same["av_clean"].sure) == (0, [0, 0], False)
    assert chance["av_clean"].wer == 1 / 400 and chance["av_clean"].interval[0] == 0 and not chance["av_clean"].sure
    assert worse["av_clean"].wer == 50 / 400 and worse["av_clean"].sure
    assert worse["av_clean"].interval == pytest.approx([0.1, 0.15], abs=0.005)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"+12.50", "ΔWER +0.25", "(this one)"} <= {*page.texts}
    links = [link for link in page.links if not link.startswith("#")]
    assert links == [f"evaluations/00000{step}-test/report.html" for step in (100, 200, 300, 400)]
    assert all((tmp_path / link).exists() for link in links)
    # A table that somebody deleted is not compared.
    (tmp_path / "evaluations" / "00000300-test" / "av_clean.tsv").unlink()
    assert [len(one.differences) for one in compare(tmp_path, kept, "00000400-test")] == [1, 1, 0, 0]


@settings(max_examples=10)
@given(st.text(st.sampled_from("<>&\"'{}%$\\ab"), min_size=1).filter(str.strip))
def test_page_takes_any_text_as_text(text):
    rows = [row(text, f"a {text}", f"b {text}")]
    names = {f"av_{text}_{snr}db": rows for snr in (0, 5)} | {"av_clean": rows}
    plain = {name.replace(text, "x"): [row("x", "a x", "b x")] for name in names}
    curves = {"train/loss": {1: 1.0}}
    page, expected = (Page(render(make_report(ABOUT, x, {text: text}), curves)) for x in (names, plain))
    assert page.elements == expected.elements and text in page.texts


def test_curves_of_a_run_that_was_continued(workdir, tmp_path):
    """It stopped after update 30, whose checkpoint was not saved, and went on from 20."""
    curves = read_curves(workdir / "tensorboard")
    assert (
        curves["train/loss"] == {10: 3.0, 20: 2.0, 30: 1.0, 40: 0.5} == scalars(workdir / "tensorboard")["train/loss"]
    )
    # Other steps than before: what the first run did from there on is no part of the curve.
    assert list(read_curves(write_curves(tmp_path, {1: 1, 2: 2, 3: 3}, {1: 5}))["train/loss"].items()) == [(1, 5.0)]
    assert read_curves(tmp_path / "missing") == {}


def test_event_files_end_where_they_are_damaged(tmp_path):
    folder = write_curves(tmp_path, {step: float(step) for step in range(1, 6)})
    (path,) = folder.iterdir()
    data, whole = path.read_bytes(), read_curves(folder)["train/loss"]
    assert list(whole) == [1, 2, 3, 4, 5]
    for damaged in (data[:-20], data[: len(data) // 2] + b"\xff" * 20 + data[len(data) // 2 + 20 :], data[:5], b""):
        path.write_bytes(damaged)
        rest = read_curves(folder).get("train/loss", {})
        assert rest.items() <= whole.items() and len(rest) < len(data) - len(damaged) + 4
