"""What the page says in Vietnamese: every sentence that a visitor can meet, brought about for real."""

import re
import unicodedata

import numpy as np
import pytest
from films import RATE, film, noise, sound
from page_requests import message, raw, sent

from tests.stress import visitors
from viavsp_jax.app.inputs import USED
from viavsp_jax.app.page import answers, language
from viavsp_jax.app.page.layout import EXAMPLE
from viavsp_jax.app.page.vietnamese import GRADIO, SENTENCES
from viavsp_jax.app.transcriber import Transcriber
from viavsp_jax.prepare.demo.sentences import sample_sentences
from viavsp_jax.prepare.recordings.recording import read_recording

VIETNAMESE = {"Accept-Language": "vi-VN,vi;q=0.9,en-US;q=0.8,en;q=0.7"}
GENERAL = [SENTENCES["This recording cannot be used."], SENTENCES["A part of the recording is not used."]]
SAME = {"video", "mp4", "wav", "trang"}  # words of both languages


@pytest.fixture(scope="module")
def transcriber(demo_export):
    return Transcriber.from_pretrained(demo_export, device="cpu")


def recordings(folder):
    """Recordings that cannot be used, and how each is tried: path, modality, minutes."""
    speech = read_recording(EXAMPLE).samples
    (folder / "letter.mp4").write_text("no video\n" * 9)
    (folder / "empty.mp4").write_bytes(b"")
    quiet, still = np.zeros(RATE, np.int16), [np.zeros((96, 96, 3), np.uint8)] * 2
    whole = film(folder / "whole.mp4", noise(20), speech).read_bytes()
    (folder / "broken.mp4").write_bytes(whole[:300])
    wide = film(folder / "wide.avi", noise(2, 48, 64)).read_bytes()
    (folder / "wide.avi").write_bytes(wide.replace(b"\x40\0\0\0\x30\0\0\0", b"\x40\x42\x0f\0\x40\x42\x0f\0"))
    yield folder / "letter.mp4", "automatic", 1
    yield folder / "empty.mp4", "automatic", 1
    yield folder / "broken.mp4", "automatic", 1
    yield folder / "wide.avi", "automatic", 1
    yield folder / "gone.mp4", "automatic", 1
    yield sound(folder / "nothing.wav", quiet[:0]), "automatic", 1
    yield sound(folder / "sound.wav", speech), "av", 1
    yield sound(folder / "sound.wav", speech), "video", 1
    yield film(folder / "silent.mp4", noise(20)), "audio", 1
    yield film(folder / "silent.mp4", noise(20)), "automatic", 1
    yield film(folder / "faceless.mp4", noise(20), speech), "av", 1
    yield film(folder / "long.mp4", still, speech, seconds=120), "automatic", 1
    yield film(folder / "leap.mkv", still, seconds=2 * 3600), "automatic", 1000


def test_errors_have_no_english_left(transcriber, tmp_path):
    met = set()
    for path, modality, minutes in recordings(tmp_path):
        english, vietnamese = (refusal(transcriber, path, modality, minutes, spoken) for spoken in ("en", "vi"))
        assert english.startswith(f"{path.name}: ") and vietnamese.startswith(f"{path.name}: "), english
        assert_vietnamese(vietnamese, english)
        met.add(vietnamese.partition(": ")[2])
    assert len(met) > 7


def refusal(transcriber, path, modality, minutes, spoken):
    steps = answers.transcribe(
        transcriber, minutes, spoken, str(path), None, modality, False, 0, 1, lambda share, desc: None
    )
    [shown] = [values[0] for values in steps]
    assert shown, path
    return re.fullmatch(r'<p class="error" role="alert">(.*)</p>', shown)[1]


def assert_vietnamese(vietnamese, english):
    """Of one sentence in both languages."""
    assert vietnamese not in GENERAL, english
    words = [set(re.findall(r"[^\W\d_]{3,}", re.sub(r"^\S+: ", "", one).lower())) for one in (vietnamese, english)]
    assert words[0] and not words[0] & words[1] - SAME, english


def test_what_is_done_without_a_face_is_said(transcriber, tmp_path):
    film(tmp_path / "faceless.mp4", noise(56), read_recording(EXAMPLE).samples)
    seen = {}
    for spoken in ("en", "vi"):
        progress = []
        steps = answers.transcribe(
            transcriber, 1, spoken, str(tmp_path / "faceless.mp4"), None, "automatic", False, 0, 1,
            lambda share, desc, progress=progress: progress.append(desc),
        )  # fmt: skip
        shown = next(steps)[3]
        seen[spoken] = re.search(r'<p class="warning">(.*)</p>', shown)[1], *dict.fromkeys(progress)
        assert str(tmp_path) not in shown
        steps.close()
    assert len(seen["vi"]) > 3
    for vietnamese, english in zip(seen["vi"], seen["en"], strict=True):
        assert SENTENCES["working"] != vietnamese
        assert_vietnamese(vietnamese, english)


def test_sentences_of_the_page_itself_and_of_the_gate(page, client, event):
    answer = visitors.press(client, event, None, headers=VIETNAMESE)
    assert message(answer) == f'<p class="error" role="alert">{SENTENCES[CHOOSE]}</p>'
    number = visitors.events(client)["make"]
    body = {"data": [None], "fn_index": number, "session_hash": "make"}
    client.post("/gradio_api/queue/join", json=body, headers=VIETNAMESE)
    assert GONE in visitors.listen(client, "make").values[0]
    file = sent(client, "a.mp4", b"x") | {"path": "/gone.mp4"}
    assert SENTENCES[SEND] in visitors.press(client, event, file, headers=VIETNAMESE).refusal
    status, text = raw(page, "/gradio_api/upload", "POST", VIETNAMESE | {"Content-Length": str(10**9)})
    assert status == 413 and text.endswith("\nTệp quá lớn, vui lòng chọn tệp không quá 200 MB.\n")
    assert client.get("/gradio_api/runs", headers=VIETNAMESE).text == "Không thể thực hiện yêu cầu này.\n"


CHOOSE = "Choose a video or a sound file first, or record one."
SEND = "The file is no longer here, please send it once more."
GONE = SENTENCES["The recording is no longer here, please transcribe it once more."]


def test_what_has_no_vietnamese_gets_a_general_sentence():
    assert language.told("a.mp4: is blue, expected red", "vi", "This recording cannot be used.") == GENERAL[0]
    assert language.told("a.mp4: is blue, expected red", "en", "This recording cannot be used.").startswith("a.mp4: is")
    few = (
        "a.mp4: a face is seen in only 7 % of its pictures, expected one that looks towards the camera in at least 50 %"
    )
    assert language.told(few, "vi", "working").startswith("a.mp4: chỉ thấy khuôn mặt trong 7 % số hình.")


def test_tables_are_whole():
    for english, vietnamese in SENTENCES.items():
        assert set(re.findall(r"\{\w+\}", vietnamese)) <= set(re.findall(r"\{\w+\}", english)), english
        assert re.findall("</?b>", english) == re.findall("</?b>", vietnamese), english
    for text in (*SENTENCES.values(), *GRADIO.values()):
        assert text == unicodedata.normalize("NFC", text).strip() and text
    assert set(USED.values()) <= SENTENCES.keys()


@pytest.mark.parametrize(
    "header, expected",
    [("vi-VN,vi;q=0.9,en;q=0.8", "vi"), ("en-US,en;q=0.9,vi;q=0.8", "en"), ("fr-FR, fr;q=0.9, VI;q=0.8, en", "vi"),
     ("vie", "en"), ("*", "en"), ("", "en"), (None, "en")],
)  # fmt: skip
def test_language_of_a_request(header, expected):
    headers = [] if header is None else [(b"accept-language", header.encode())]
    assert language.of(language.Request({"type": "http", "headers": headers})) == expected


def test_the_demo_model_knows_what_the_page_says():
    syllables = {word for one in sample_sentences(0, 3000, "train") for word in one.split()}
    assert f"only {len(syllables)} syllables" in " ".join(SENTENCES)
