"""The web page without a browser: what it shows, what it refuses and what it leaves behind."""

import html.parser
import json
import logging
import re
import socket
import wave

import gradio as gr
import numpy as np
import pytest

from viavsp_jax.app import __main__ as app
from viavsp_jax.app import captions, pictures
from viavsp_jax.app.page import answers, layout, server, views
from viavsp_jax.app.recognizer import Hypothesis
from viavsp_jax.app.transcriber import Clip, Segment, Transcriber, Transcript
from viavsp_jax.prepare.recordings.mouth import MouthTrack
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.runtime.errors import InputError

AUTOMATIC = ("automatic", False, 0, 2)  # modality, noise, SNR, beams


@pytest.fixture(scope="module")
def transcriber(demo_export):
    return Transcriber.from_pretrained(demo_export, device="cpu")


def press(transcriber, *, video=None, sound=None, options=AUTOMATIC, minutes=1.0, spoken="en"):
    """A press of the button: its steps, and the list into which the progress goes."""
    seen = []
    given = [None if path is None else str(path) for path in (video, sound)]

    def progress(share, desc):
        seen.append((desc, share))

    return answers.transcribe(transcriber, minutes, spoken, *given, *options, progress=progress), seen


def refusal(steps, alone=False):
    """The sentence of a press that was refused, and nothing else but, maybe, the button for sound alone."""
    [(message, results, button, transcript, mouth, kept, make, subtitled, *files)] = steps
    assert [one["visible"] for one in (results, button, make, subtitled)] == [False, alone, False, False]
    assert transcript == "" and [mouth, kept, *files] == [None] * (2 + len(captions.FORMATS))
    return re.fullmatch(r'<p class="error" role="alert">(.*)</p>', message)[1]


def made_up(texts=("một hai",), runs=(3, 1, 2), offset=0):
    """A transcript of one segment after `offset` frames, whose mouth gets brighter from frame to frame."""
    frames = offset + sum(runs)
    crops = np.stack([np.full((96, 96), 2 * t, np.uint8) for t in range(frames)])
    track = MouthTrack(crops, np.ones(frames, bool), np.zeros((frames, 4), np.float32), np.ones(frames, bool))
    hypotheses = tuple(Hypothesis(text, -0.1 - i) for i, text in enumerate(texts))
    segment = Segment(offset, frames, hypotheses, np.int32(runs))
    return Transcript((segment,), "av", frames, track, np.zeros(640 * frames, np.int16), None, None)


class Elements(html.parser.HTMLParser):
    """The elements of a page, as (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_a_press_gives_the_transcript_and_files_that_go_away(transcriber, demo_clips):
    expected = transcriber(demo_clips[0], num_beams=2)
    steps, seen = press(transcriber, video=demo_clips[0])
    message, results, alone, shown, mouth, kept, make, subtitled, *files = next(steps)
    assert (
        message == "" and results["visible"] and make["visible"] and not alone["visible"] and not subtitled["visible"]
    )
    assert kept.transcript.samples is None and kept.transcript.mouth.crops.nbytes == 0  # a visitor may have a lot
    assert expected.text and f'<p class="text" lang="vi">{expected.text}</p>' in shown
    for form, file in zip(captions.FORMATS, files, strict=True):
        assert file.name == f"{demo_clips[0].stem}.{form}"
        assert file.read_text(encoding="utf-8") == captions.render(expected, form)
    assert mouth["visible"] and mouth["value"].parent == files[0].parent
    assert next(steps, None) is None
    assert not files[0].parent.exists()
    assert [what for what, _ in seen][0] == "reading the file"
    assert [seen[-1][0], seen[-1][1]] == ["reading lips and speech", 1.0]


def test_files_go_away_when_the_visitor_does(transcriber, demo_clips):
    steps, _ = press(transcriber, video=demo_clips[0])
    folder = next(steps)[-1].parent
    assert folder.exists()
    steps.close()
    assert not folder.exists()


def test_options_reach_the_transcriber(transcriber, demo_clips):
    def shown(*options):
        steps, _ = press(transcriber, video=demo_clips[0], options=options)
        return json.loads(next(steps)[-1].read_text(encoding="utf-8"))

    clean, noisy = (shown("audio", noise, -5, 3) for noise in (False, True))
    assert clean["modality"] == noisy["modality"] == "audio"
    assert len(clean["segments"][0]["alternatives"]) == 2
    assert clean["segments"] != noisy["segments"]
    assert shown("video", False, 0, 1)["segments"][0]["alternatives"] == []


def test_sound_alone_shows_no_mouth(transcriber, demo_clips, tmp_path):
    samples = read_recording(demo_clips[0]).samples
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    steps, _ = press(transcriber, sound=tmp_path / "a.wav")
    _, _, _, shown, mouth, kept, make, *_ = next(steps)
    assert mouth["value"] is None and not mouth["visible"] and kept is None and not make["visible"]
    assert transcriber(Clip(audio=samples), num_beams=2).text in shown
    classes = [attributes.get("class") for _, attributes in Elements(shown).found]
    assert "wave" in classes and "runs" in classes and "mouths" not in classes


def test_refusals_name_the_file_and_no_folder(transcriber, demo_clips, tmp_path):
    assert refusal(press(transcriber)[0]).startswith("Choose a video or a sound file")
    (tmp_path / "a & b.mp4").write_text("no video\n")
    steps, _ = press(transcriber, video=tmp_path / "a & b.mp4")
    assert refusal(steps).startswith("a &amp; b.mp4: not a media file that can be read")
    steps, seen = press(transcriber, video=demo_clips[0], minutes=0.02)
    assert refusal(steps) == f"{demo_clips[0].name}: is longer than 0.02 minutes, expected at most so many."
    assert [what for what, _ in seen] == ["reading the file"]  # before any work


def test_what_nobody_foresaw_is_one_sentence_and_a_note(caplog, demo_clips):
    def broken(*_, **__):
        raise RuntimeError("secret/path")

    with caplog.at_level(logging.ERROR):
        sentence = refusal(press(broken, video=demo_clips[0])[0])
    assert "went wrong" in sentence and "secret" not in sentence
    assert "RuntimeError: secret/path" in caplog.text


def test_values_out_of_bounds_are_refused(transcriber):
    blocks = layout.build(transcriber, 1.0, layout.Labels()).blocks.values()
    parts = {part.elem_id: part for part in blocks if getattr(part, "elem_id", None)}
    assert parts["beams"].preprocess(2) == 2
    for name, value in (("beams", 1000), ("snr", -1000), ("modality", "smell")):
        with pytest.raises(gr.Error):
            parts[name].preprocess(value)


def test_page_says_what_a_model_was_trained_on(transcriber, tmp_path, monkeypatch):
    assert transcriber.recognizer.trained_on == ("av_clean", "audio_clean", "video_clean")
    monkeypatch.setattr(transcriber.recognizer, "tokenizer", tmp_path / "another")
    monkeypatch.setattr(transcriber.recognizer, "trained_on", ("av_clean", "<b>"))
    labels = layout.Labels()
    layout.build(transcriber, 1.0, labels)
    assert "The model was trained on av_clean, &lt;b&gt;." in labels.i18n.translations["en"]
    known = labels.i18n.translations["vi"]["The model was trained on av_clean, &lt;b&gt;."]
    assert known == "Mô hình được huấn luyện trên dữ liệu av_clean, &lt;b&gt;."


def test_mouth_is_written_as_the_model_got_it(transcriber, demo_clips, tmp_path):
    transcript = transcriber(demo_clips[0], num_beams=1)
    pictures.write_mouth(transcript, tmp_path / "mouth.mp4")
    written = read_recording(tmp_path / "mouth.mp4")
    frames = np.stack([frame[..., 0] for frame in written.frames()]).astype(float)
    assert frames.shape == transcript.mouth.crops.shape
    assert np.abs(frames - transcript.mouth.crops).mean() < 4
    count = min(len(written.samples), len(transcript.samples))
    assert np.corrcoef(written.samples[:count], transcript.samples[:count])[0, 1] > 0.95


def test_strip_of_the_mouth_is_a_time_axis():
    crops = np.stack([np.full((96, 96), 3 * t, np.uint8) for t in range(12)])
    strip = views.thumbnails(crops)
    assert strip.shape == (56, round(56 * 12 / 5))
    assert [int(strip[0, x]) for x in (0, 55, 56, 111, 112)] == [6, 6, 21, 21, 33]


def test_waveform_shows_where_it_is_loud():
    samples = np.zeros(640 * 10, np.int16)
    samples[640 * 6 : 640 * 7] = 16_000
    path = views.outline(views.peaks(samples[:-700], 10)[4 * 5 :])
    points = np.array([[float(x) for x in point.split()] for point in path.strip("MZ").split("L")])
    upper = points[: len(points) // 2]
    assert len(upper) == 4 * 5
    loud = upper[upper[:, 1] == -1][:, 0]
    assert 1 < loud.min() and loud.max() < 2 and len(loud) == 4
    np.testing.assert_array_equal(points[::-1] * [1, -1], points)


def test_words_that_differ_are_marked():
    marked = list(views.marked("một hai ba bốn".split(), "một ba bảy bốn năm".split()))
    assert marked == [("một", False), ("ba", False), ("bảy", True), ("bốn", False), ("năm", True)]


def test_html_holds_runs_times_and_alternatives():
    shown = views.render(made_up(("một hai", "một ba", "một hai"), (3, 1, 2), offset=50), 0.56, "en")
    elements = Elements(shown).found
    [segment] = [attributes for tag, attributes in elements if tag == "details"]
    assert (segment["data-start"], segment["data-end"]) == ("2.0", "2.24")
    runs = [attributes for _, attributes in elements if attributes.get("title")]
    assert [run["title"] for run in runs] == [
        "2.00–2.12 s: 3 frames", "2.12–2.16 s: 1 frame", "2.16–2.24 s: 2 frames",
    ]  # fmt: skip
    assert [int(run["style"].split(":")[1].split()[0]) for run in runs] == [3, 1, 2]
    assert "real-time factor <b>0.25</b>" in shown
    assert "<b>6</b> frames merged into <b>3</b> vectors" in shown
    assert shown.count("<mark>") == 1 and "<mark>ba</mark>" in shown  # the same text twice is one alternative


def test_text_of_a_model_is_never_markup():
    shown = views.render(made_up(("<img src=x onerror=alert(1)>", "</table><script>")), 1.0, "vi")
    assert "<script" not in shown and not [
        attributes for _, attributes in Elements(shown).found if "onerror" in attributes
    ]


def refused_options(capsys, *options):
    with pytest.raises(SystemExit) as status:
        app.main(["--model", "nowhere", *options])
    assert status.value.code == 2
    return capsys.readouterr().err


def test_command_refuses_what_cannot_be(capsys):
    wrong = {"--max_minutes": "0", "--port": "99999", "--batch_size": "x"}
    expected = "a number above 0", "a whole number at least 1 and at most 65535", "a whole number at least 1"
    for (option, value), bounds in zip(wrong.items(), expected, strict=True):
        assert refused_options(capsys, option, value) == f"error: {option} is {value}, expected {bounds}\n"


def test_a_port_in_use_is_one_sentence(transcriber, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot be shown at 127.0.0.1:{port} .*expected a free port"):
            server.serve(transcriber, 1.0, "127.0.0.1", port, tmp_path)
