"""The web page as a visitor has it: the real server with a small model, in Chromium."""

import json
import pathlib
import urllib.error
import urllib.parse
import urllib.request
import wave

import chromium
import pytest
from chromium import ERROR, PATIENCE, TRANSCRIPT, WebDriverWait, find, text_of, transcribe, upload, wait_for

from viavsp_jax.app import captions
from viavsp_jax.app.transcriber import Transcriber
from viavsp_jax.prepare.recordings.recording import read_recording

pytestmark = chromium.needed


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """Where the browser puts what is downloaded."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    with chromium.opened((1280, 1600), downloads=downloads) as driver:
        yield driver


def hosts(browser):
    """Whom the browser has asked for something."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {urllib.parse.urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:"))}


def test_transcribes_a_clip(page, browser, downloads, demo_export, demo_clips):
    address, clip = page.address, demo_clips[0]
    expected = Transcriber.from_pretrained(demo_export, device="cpu")(clip)
    [segment] = expected.segments
    upload(browser, address, clip)
    transcribe(browser)
    assert text_of(browser, "#transcript p.text") == [expected.text]
    assert text_of(browser, ERROR) == [] and find(browser, "#seen")[0].is_displayed()

    # What was merged: blocks as wide as their runs are long, under the mouth.
    (left, whole), *blocks = boxes(browser, ".runs, .runs span")
    lengths = segment.run_lengths / sum(segment.run_lengths)
    assert [width for _, width in blocks] == pytest.approx(whole * lengths, abs=0.1)
    assert boxes(browser, ".mouths") == [pytest.approx((left, whole), abs=0.1)]
    assert find(browser, ".mouths")[0].get_property("naturalWidth") == round(expected.num_frames * 56 / 5)

    rows = text_of(browser, ".alternatives tbody td")
    assert rows[1::2] == list(dict.fromkeys(one.text for one in segment.hypotheses))
    assert float(rows[0]) == pytest.approx(segment.score, abs=2e-3)

    for form in captions.FORMATS:
        find(browser, f"#download_{form}")[0].click()
        file = downloads / f"{clip.stem}.{form}"
        WebDriverWait(browser, PATIENCE).until(lambda _, file=file: file.exists())
        assert file.read_text(encoding="utf-8") == captions.render(expected, form)
    assert hosts(browser) == {urllib.parse.urlsplit(address).netloc}


def test_mouth_is_played_beside_the_strip(browser):
    """With what the test before has left in the page."""
    player = "const player = document.querySelector('#mouth video');"

    def wait_until(condition):
        WebDriverWait(browser, PATIENCE).until(lambda _: browser.execute_script(f"{player} return {condition}"))

    wait_until("player && player.readyState > 1")
    assert browser.execute_script(f"{player} return [player.videoWidth, player.videoHeight]") == [96, 96]
    end = float(find(browser, TRANSCRIPT)[0].get_attribute("data-end"))
    assert browser.execute_script(f"{player} return player.duration") == pytest.approx(end, abs=0.1)
    browser.execute_script(f"{player} player.currentTime = {end / 2}")
    wait_for(browser, ".strip .head:not([hidden])")
    [(left, whole), (head, _)] = boxes(browser, ".runs, .strip .head")
    assert head - left == pytest.approx(whole / 2, abs=2)
    find(browser, TRANSCRIPT + " summary")[0].click()
    wait_until("player.currentTime === 0")


def boxes(browser, selector):
    """Left edges and widths of elements, in pixels."""
    script = """return [...document.querySelectorAll(arguments[0])].map((element) => {
        const {x, width} = element.getBoundingClientRect(); return [x, width];
    });"""
    return [tuple(box) for box in browser.execute_script(script, selector)]


def test_bad_file_gets_one_sentence(page, browser, tmp_path):
    (tmp_path / "letter.mp4").write_text("Dear server, this is no video.\n" * 40)
    upload(browser, page.address, tmp_path / "letter.mp4")
    transcribe(browser)
    [sentence] = text_of(browser, ERROR)
    assert sentence.startswith("letter.mp4: not a media file that can be read")
    seen = find(browser, "body")[0].text
    assert "Traceback" not in seen and str(page.folder) not in seen
    assert not find(browser, TRANSCRIPT)
    assert [*page.folder.rglob("letter.mp4")]  # as long as the page lives, which is looked at when it stops


def test_the_last_file_given_counts(page, browser, demo_clips, tmp_path):
    """A sound after a video: the video is taken out."""
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(read_recording(demo_clips[1]).samples.tobytes())
    upload(browser, page.address, demo_clips[0])
    find(browser, "button[role=tab]")[1].click()
    wait_for(browser, "#sound input[type=file]")[0].send_keys(str(tmp_path / "sound.wav"))
    wait_for(browser, "#sound audio, #sound .waveform-container, #sound #waveform")
    transcribe(browser)
    assert "by sound alone" in text_of(browser, "#transcript .facts")[0]
    assert not find(browser, "#seen")[0].is_displayed() and not find(browser, ".mouths") and find(browser, ".wave")


def test_the_level_of_the_noise_is_asked_for_where_there_is_any(page, browser):
    browser.get(page.address)
    wait_for(browser, "#advanced button")[0].click()
    wait_for(browser, "#noisy input")
    assert not find(browser, "#snr")[0].is_displayed()
    find(browser, "#noisy input")[0].click()
    WebDriverWait(browser, PATIENCE).until(lambda _: find(browser, "#snr")[0].is_displayed())


def test_files_of_the_server_are_not_served(page, demo_export):
    for path in ("/etc/hostname", f"{demo_export}/config.json", str(pathlib.Path(__file__))):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{page.address}/gradio_api/file={urllib.parse.quote(path)}")
        assert error.value.code in (403, 404)
