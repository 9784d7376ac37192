"""Interferers and lost video in the report: what names tell, tables, the figure, and what others have reached."""

import re

import pytest
from report_pages import Page, row

from viavsp_jax.evaluation.report import analysis
from viavsp_jax.evaluation.report.page import make_report, render

ABOUT = {"checkpoint": 300, "split": "test"}


@pytest.mark.parametrize("name, expected", {
    "av_babble2_0db": ("av", "babble", 0, 2), "video_snr_-5_interferer_1": ("video", "interferers", -5, 1),
    "audio_snr_n5_interferer_2": ("audio", "interferers", -5, 2), "av_babblers_0db": ("av", "babblers", 0, None),
    "av_snr_10_interferer_1": ("av", "interferers", 10, 1),
}.items())  # fmt: skip
def test_how_many_interfere_by_the_name(name, expected):
    modality, noise, snr_db, interferers = expected
    found = {"modality": modality, "noise": noise, "snr_db": snr_db}
    assert analysis.condition(name) == found | ({"interferers": interferers} if interferers else {})
    lost = {"lost_percent": 25, "lost_policy": "held"}
    if modality != "audio":
        assert analysis.condition(f"{name}_lost25held") == analysis.condition(name) | lost
        zeros = {"modality": modality, "noise": None, "snr_db": None} | lost | {"lost_policy": "zeros"}
        assert analysis.condition(f"{modality}_lost25") == zeros


def rows_with(errors):
    """A hundred words, so many of them wrong."""
    return [row(f"c{i:03}", "một", "hai" if i < errors else "một") for i in range(100)]


def cells(page):
    """Texts of the page, one after the other, without what is empty."""
    return " ".join(text for text in page.texts if text)


# By SNR, then by interferers, WER in % of av and audio.
CORPUS = {10: ((11, 20), (12, 22)), 0: ((21, 45), (25, 50)), -5: ((30, 70), (35, 78))}


@pytest.fixture(scope="module")
def of_corpus():
    names = {"av_clean": 10, "audio_clean": 14, "video_clean": 55}
    for snr, both in CORPUS.items():
        for number, (av, audio) in enumerate(both, 1):
            names |= {f"av_snr_{snr}_interferer_{number}": av, f"audio_snr_{snr}_interferer_{number}": audio}
    return {name: rows_with(errors) for name, errors in names.items()}


def test_interferers_in_table_and_figure(of_corpus):
    text = render(make_report(ABOUT, of_corpus, {}), {})
    found = cells(Page(text))
    assert "noise talkers SNR dB av audio video none – – 10.00 " in found
    for snr, both in CORPUS.items():
        for number, (av, audio) in enumerate(both, 1):
            assert re.search(rf"interferers {number} {snr} {av}\.00 [\d.–]+ {audio}\.00 [\d.–]+ –", found)
    # A line for each modality and number, a level one for what does not hear them, and what others have reached.
    assert "WER, %: interferers" in found and found.count("WER, %:") == 1
    figure = text[text.index('aria-label="WER over') :].split("</svg>")[0]
    labels = [*(f"{x}, {n}" for x in ("av", "audio") for n in ("1 talker", "2 talkers")), "video", "av, theirs",
              "audio, theirs"]  # fmt: skip
    assert sorted(re.findall(r">((?:av|audio|video)[^<]*)<", figure)) == sorted(labels)
    assert "none, theirs – – 9.4 13.6 –" in found and "nguyenvulebinh/AVSRCocktail" in found
    dashed = {line: figure.count(line) for line in ("var(--series-1)", "var(--series-2)", "stroke-dasharray")}
    assert all(dashed.values())


def test_the_same_in_every_spelling_and_order(of_corpus):
    page = render(make_report(ABOUT, of_corpus, {}), {})
    spelled = {name.replace("snr_-", "snr_n"): rows for name, rows in reversed(of_corpus.items())}
    of_others = render(make_report(ABOUT, spelled, {}), {})
    table = re.compile(r"(?s)text as written</h3>\n\n?<div class=\"scroll\"><table>\n.*?</table>")
    assert table.findall(page) == table.findall(of_others) != []


def test_what_others_reached_stands_only_beside_sets_of_their_corpus(of_corpus):
    for tables, about in (
        ({name: rows for name, rows in of_corpus.items() if "interferer" not in name}, ABOUT),
        ({name: rows for name, rows in of_corpus.items() if "clean" not in name}, ABOUT),
        (of_corpus, ABOUT | {"split": "valid"}),
    ):
        assert "theirs" not in render(make_report(about, tables, {}), {})
    without_audio = {name: rows for name, rows in of_corpus.items() if name != "audio_clean"}
    assert "none, theirs – – 9.4 – –" in cells(Page(render(make_report(ABOUT, without_audio, {}), {})))


def test_babble_of_few_beside_that_of_eight():
    names = {f"av_babble{few}_{snr}db": 20 - snr + 5 * bool(few) for few in ("", "2") for snr in (0, -5)}
    text = render(make_report(ABOUT, {name: rows_with(errors) for name, errors in names.items()}, {}), {})
    found = cells(Page(text))
    assert "talkers SNR dB av babble 2 0 25.00" in found and "babble 8 -5 25.00" in found
    assert "av, 2 talkers" in found and "av, 8 talkers" in found
    usual = render(make_report(ABOUT, {name: rows_with(9) for name in names if "2" not in name}, {}), {})
    assert "talker" not in usual and "WER, %: babble" in usual


def test_lost_video_in_a_table(of_corpus):
    lost = {"av_lost25": 15, "av_lost50": 19, "av_lost50held": 17, "video_lost50": 80}
    lost["av_snr_0_interferer_2_lost50"] = 40
    tables = of_corpus | {name: rows_with(errors) for name, errors in lost.items()}
    found = cells(Page(render(make_report(ABOUT, tables, {}), {})))
    of_noise, of_lost = (part.replace("–", "-") for part in found.split("share of the video lost, text as written"))
    assert of_lost.startswith(" noise talkers SNR dB video lost % av audio video none - - 0 10.00")
    rates = ["none - - 0 10.00", "14.00", "55.00", "none - - 25 15.00", "- - none - - 50 19.00", "- 80.00",
             "none - - 50, last picture held 17.00", "- - interferers 2 0 0 25.00", "50.00",
             "- interferers 2 0 50 40.00", "- -"]  # fmt: skip
    assert re.search(r" [\d.]+-[\d.]+ ".join(map(re.escape, rates)), of_lost)
    # What is lost has no part in the table and the figure of noise.
    assert "interferers 2 0 25.00" in of_noise and "40.00" not in of_noise.split("by modality and noise")[1]
    small = {"av_clean": rows_with(10), "av_lost25": rows_with(15)}
    found = cells(Page(render(make_report(ABOUT, small, {}), {})))
    assert "video lost % av 0 10.00" in found and "SNR" not in found
    assert "lost" not in render(make_report(ABOUT, of_corpus, {}), {})


def test_a_report_that_knows_less_of_its_sets_opens(of_corpus):
    """As earlier versions wrote them."""
    report = make_report(ABOUT, of_corpus | {"av_babble_0db": rows_with(5)}, {})
    for part in report["analysis"].values():
        known = part["condition"]
        part["condition"] = {} if "interferers" in known else {x: known[x] for x in ("modality", "noise", "snr_db")}
    found = cells(Page(render(report, {})))
    assert "babble 0 5.00" in found and "talkers" not in found


@pytest.mark.parametrize("name, text", {
    "av_clean_pool3": "pool:3", "video_clean_max2": "clusters+max:2", "av_babble2_0db_lost25held_clusters": "clusters",
    "audio_snr_n5_interferer_2_pool1": "pool:1",
}.items())  # fmt: skip
def test_compression_by_the_name(name, text):
    assert analysis.condition(name) == analysis.condition(name.rpartition("_")[0]) | {"compression": text}


def compressed(errors, positions):
    """Clips of three seconds."""
    return [one | {"positions": positions} for one in rows_with(errors)]


def test_sets_of_several_compressions(of_corpus):
    tables = {
        "av_clean": compressed(10, 45), "av_clean_pool3": compressed(13, 26), "av_clean_max2": compressed(9, 54),
        "video_clean": compressed(55, 48), "video_clean_pool3": compressed(60, 26), "audio_clean": compressed(14, 45),
        "av_lost25": compressed(15, 45), "av_lost25_pool3": compressed(18, 26),
    }  # fmt: skip
    report = make_report(ABOUT, tables, {})
    rates = {name: part["positions_per_second"] for name, part in report["analysis"].items()}
    assert (
        rates["av_clean"] == 15
        and rates["av_clean_max2"] == 18
        and rates["av_clean_pool3"] == pytest.approx(8.667, 1e-3)
    )
    text = render(report, {})
    found = cells(Page(text)).split(
        "WER % against speech positions a second, text as written set positions a second WER % "
    )
    (before, table) = found
    lines = ["av_clean_pool3 8.67 13.00", "av_clean 15.00 10.00", "av_clean_max2 18.00 9.00",
             "video_clean_pool3 8.67 60.00", "video_clean 16.00 55.00", "av_lost25_pool3 8.67 18.00",
             "av_lost25 15.00 15.00"]  # fmt: skip
    assert re.match(r" [\d.]+–[\d.]+ ".join(map(re.escape, lines)), table)
    assert "audio_clean 15.00" not in table
    figures = re.findall(r'aria-label="WER over speech positions a second, (\w+)".*?</svg>', text, re.DOTALL)
    assert figures == ["clean", "lost25"]
    figure = text[text.index('aria-label="WER over speech positions a second, clean"') :].split("</svg>")[0]
    assert re.findall(r">((?:av|audio|video)[^<]*)<", figure) == ["av", "video"]
    # They have no part in the other tables.
    of_lost = before.split("share of the video lost, text as written")[1]
    assert re.findall(r"\d+\.00", of_lost) == ["10.00", "14.00", "55.00", "15.00"]
    # Without positions, as in results of earlier versions, and without other compressions there is no such table.
    assert "against speech positions" not in render(make_report(ABOUT, of_corpus, {}), {})
    plain = {
        name: rows for name, rows in tables.items() if "clean" in name and "_pool" not in name and "_max" not in name
    }
    assert "against speech positions" not in render(make_report(ABOUT, plain, {}), {})
    older = {name: rows_with(9) for name in tables}
    assert "positions_per_second" not in make_report(ABOUT, older, {})["analysis"]["av_clean"]
    assert "against speech positions" not in render(make_report(ABOUT, older, {}), {})
