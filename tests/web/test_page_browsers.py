"""The page and the report on a phone and on a desk, in Vietnamese and in English, and what else takes a browser."""

import re

import chromium
import pytest
from chromium import ERROR, find, overhang, text_of, transcribe, upload, wait_for, wait_until
from films import film, noise

from viavsp_jax.app.page.layout import EXAMPLE
from viavsp_jax.app.page.vietnamese import SENTENCES
from viavsp_jax.evaluation.report.page import make_report, write_report
from viavsp_jax.prepare.recordings.recording import read_recording

pytestmark = chromium.needed
IN_SIGHT = """const box = document.querySelector(arguments[0]).getBoundingClientRect();
return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight"""
# All that a visitor is shown, but for what is said in the recording.
SHOWN = """const all = document.body.cloneNode(true);
all.querySelectorAll("script, style, [lang=vi]").forEach((one) => one.remove());
const names = ["title", "aria-label", "alt", "placeholder", "data-done"];
const attributes = [...all.querySelectorAll("#transcript *, #transcribe, #modality *, #alone, #make")].flatMap(
  (one) => names.map((name) => one.getAttribute(name) ?? ""));
return [document.title, all.textContent, ...attributes].join("\\n")"""
VIETNAMESE = re.compile("[ăâđêôơưàáảãạằắẳẵặầấẩẫậèéẻẽẹềếểễệìíỉĩịòóỏõọồốổỗộờớởỡợùúủũụừứửữựỳýỷỹỵ]", re.I)
# The sentences in pieces without values, less what is the same in Vietnamese.
ENGLISH = {piece for one in SENTENCES for piece in re.split(r"\{\w+\}|</?b>", one) if len(piece.strip()) > 3} - {
    "Video"
}


@pytest.fixture
def faceless(tmp_path):
    """Speech, without a face to it."""
    return film(tmp_path / "faceless.mp4", noise(56), read_recording(EXAMPLE).samples)


def give_example(browser, address):
    browser.get(address)
    wait_for(browser, "#example")[0].click()
    wait_for(browser, "#recording video")


@pytest.mark.parametrize("size", [chromium.PHONE, chromium.DESKTOP])
def test_the_button_is_in_sight_and_nothing_is_wider_than_the_screen(page, size):
    with chromium.opened(size, "vi-VN,vi") as browser:
        browser.get(page.address)
        wait_for(browser, "#recording input[type=file]")
        assert browser.execute_script(IN_SIGHT, "#transcribe") and overhang(browser) <= 0
        give_example(browser, page.address)
        assert browser.execute_script(IN_SIGHT, "#transcribe")
        find(browser, "#advanced button")[0].click()
        transcribe(browser)
        assert overhang(browser) <= 0


@pytest.mark.parametrize("size", [chromium.PHONE, chromium.DESKTOP])
def test_tables_of_the_report_scroll_in_their_own_boxes(size, tmp_path):
    name = "av_noise_of_a_name_that_no_phone_is_wide_enough_for"
    rows = [
        {"id": 30 * f"a{number}", "reference": "má ăn cá " * 9, "hypothesis": "mà ăn gà " * 9, "score": -0.5,
         "source_language": "vi", "target_language": "vi", "seconds": 3.0} for number in range(3)
    ]  # fmt: skip
    write_report(tmp_path, make_report({"checkpoint": 300, "split": "test"}, {name: rows, "av_clean": rows}, {}))
    with chromium.opened(size) as browser:
        browser.get((tmp_path / "report.html").as_uri())
        assert overhang(browser) <= 0
        hidden = "return [...document.querySelectorAll('.scroll')].map((one) => one.scrollWidth - one.clientWidth)"
        assert size is chromium.DESKTOP or max(browser.execute_script(hidden)) > 0


def test_in_vietnamese_there_is_no_english(page, faceless):
    shown = []
    with chromium.opened(chromium.DESKTOP, "vi-VN,vi") as browser:
        give_example(browser, page.address)
        assert browser.execute_script("return document.documentElement.lang") == "vi"
        find(browser, "#advanced button")[0].click()
        transcribe(browser)
        shown.append(browser.execute_script(SHOWN))
        upload(browser, page.address, faceless)
        transcribe(browser)
        shown.append(browser.execute_script(SHOWN))
        find(browser, "#modality input[value=video]")[0].click()
        transcribe(browser)
        wait_for(browser, ERROR)
        shown.append(browser.execute_script(SHOWN))
    assert "không thấy khuôn mặt" in shown[1] and "không thấy khuôn mặt" in shown[2]
    for text in shown:
        assert "Nhận dạng" in text and "156 âm tiết" in text and not [piece for piece in ENGLISH if piece in text]


def test_in_english_there_is_no_vietnamese(page, faceless):
    with chromium.opened(chromium.DESKTOP, "en-US,en") as browser:
        upload(browser, page.address, faceless)
        assert browser.execute_script("return document.documentElement.lang") == "en"
        transcribe(browser)
        text = browser.execute_script(SHOWN)
    assert "Transcribe" in text and "156 syllables" in text and not VIETNAMESE.findall(text)


def test_the_error_is_cleared_and_the_sound_alone_goes_on(page, faceless):
    with chromium.opened() as browser:
        upload(browser, page.address, faceless)
        find(browser, "#modality input[value=av]")[0].click()
        transcribe(browser)
        assert "no face is seen" in text_of(browser, ERROR)[0]
        button = wait_until(lambda: [one for one in find(browser, "#alone") if one.is_displayed()])[0]
        button.click()
        wait_until(lambda: not find(browser, ERROR))
        wait_for(browser, "#transcript .segment")
        assert "by sound alone" in text_of(browser, "#transcript .facts")[0]
        assert find(browser, "#modality input[value=audio]")[0].is_selected()
        assert not [one for one in find(browser, "#alone") if one.is_displayed()]


def test_text_is_copied_and_the_video_gets_subtitles(page, tmp_path):
    with chromium.opened(downloads=tmp_path) as browser:
        give_example(browser, page.address)
        transcribe(browser)
        find(browser, ".copy")[0].click()
        assert text_of(browser, ".copy") == ["Copied"]
        find(browser, "#make")[0].click()
        wait_for(browser, "#subtitled video")
        find(browser, "#subtitled a[download]")[0].click()
        written = tmp_path / "example.subtitled.mp4"
        wait_until(written.exists)
    recording = read_recording(written)
    assert recording.size == (96, 96) and len(list(recording.frames())) == 56
