"""Words on the page: when they are said, how likely they are right, and players that go there."""

import chromium
import pytest
from chromium import find, text_of, transcribe, wait_for, wait_until
from spoken_words import transcript_of_words

from tests.stress import visitors
from viavsp_jax.app.page import views

# A model that says the same of everything, each word as long as the others.
MODEL = """
import pathlib
import numpy as np
from viavsp_jax.app import __main__ as app
from viavsp_jax.app.recognizer import Hypothesis, Recognition, Word
from viavsp_jax.app.transcriber import Transcriber

class Worded:
    longest, num_beams, knows_lost_video, knows_words = 500, 1, False, True
    tokenizer, trained_on = pathlib.Path("nowhere"), ()

    def __call__(self, utterances, languages, num_beams):
        sure = {"một": 0.9, "hai": 0.125, "ba": 0.5, "<b>": None}
        words = tuple(Word(word, number / 4, (number + 1) / 4, p) for number, (word, p) in enumerate(sure.items()))
        text = " ".join(sure)
        return [Recognition((Hypothesis(text, 0.0),), np.int32([one.num_frames]), words) for one in utterances]

app.load_transcriber = lambda args: Transcriber(Worded())
"""


def test_words_know_their_time_and_how_likely_they_are():
    words = ("một", 2.04, 2.5, 0.9), ("hai", 2.5, 2.75, 0.494), ("<b>", 2.75, 3.0)
    shown = views.render(transcript_of_words([2, 3, *words], [3, 4]), 1.0, "en")
    text = (
        '<span class="word" data-start="2.04" title="2.04–2.50 s, 90 % likely right">một</span> '
        '<span class="word doubtful" data-start="2.5" title="2.50–2.75 s, 49 % likely right">hai</span> '
        '<span class="word" data-start="2.75" title="2.75–3.00 s">&lt;b&gt;</span>'
    )
    assert f'<p class="text" lang="vi">{text}</p>' in shown
    assert f'<span lang="vi">{text}</span></summary>' in shown and '<span lang="vi">—</span></summary>' in shown
    vietnamese = views.render(transcript_of_words([2, 3, *words]), 1.0, "vi")
    assert 'title="2,50–2,75 giây, khả năng đúng 49 %">hai</span>' in vietnamese


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """With the example transcribed."""
    folder = tmp_path_factory.mktemp("words")
    with visitors.running("any", folder, before=MODEL) as page, chromium.opened((1280, 1200)) as driver:
        driver.get(page.address)
        wait_for(driver, "#example")[0].click()
        wait_for(driver, "#recording video")
        transcribe(driver)
        wait_until(lambda: driver.execute_script("return document.querySelector('#mouth video')?.readyState > 1"))
        yield driver


@chromium.needed
def test_a_word_that_is_clicked_is_where_the_players_go(browser):
    assert text_of(browser, "#transcript p.text") == ["một hai ba <b>"]
    times = "return [...document.querySelectorAll('#recording video, #mouth video')].map((one) => one.currentTime)"
    for where in ("p.text", "summary"):
        for word in find(browser, f"#transcript {where} .word"):
            word.click()
            start = float(word.get_attribute("data-start"))
            wait_until(lambda start=start: browser.execute_script(times) == [start, start])
            assert find(browser, "#transcript .segment[open]")
    assert start == float(find(browser, "#transcript .segment")[0].get_attribute("data-start")) + 0.75
    find(browser, "#transcript summary time")[0].click()
    assert not find(browser, "#transcript .segment[open]")


@chromium.needed
def test_doubtful_words_have_a_dotted_line(browser):
    style = (
        "return getComputedStyle(arguments[0]).textDecorationStyle + getComputedStyle(arguments[0]).textDecorationLine"
    )
    styles = {word.text: browser.execute_script(style, word) for word in find(browser, "#transcript p.text .word")}
    assert styles == {"một": "solidnone", "hai": "dottedunderline", "ba": "solidnone", "<b>": "solidnone"}
    find(browser, "#transcript .copy")[0].click()
    assert browser.execute_script("return getSelection().toString()") == "một hai ba <b>"
