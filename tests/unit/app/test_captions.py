"""Transcripts as files: text, subtitles, JSON."""

import json

import numpy as np

from viavsp_jax.app import captions
from viavsp_jax.app.recognizer import Hypothesis
from viavsp_jax.app.transcriber import Segment, Transcript


def transcript_of(*texts):
    segments = []
    for start, text in enumerate(texts):
        hypotheses = Hypothesis(text, -0.25), Hypothesis("khác", -1.0)
        frames = 10 * start, 10 * start + 10
        segments.append(Segment(*frames, hypotheses, np.int32([4, 6]), "audio"))
    return Transcript(tuple(segments), "audio", 10 * len(texts), None, None, None, None)


def test_formats():
    transcript = transcript_of("xin chào", "", "a < b & c --> d")
    assert captions.render(transcript, "txt") == "xin chào\na < b & c --> d\n"
    assert captions.render(transcript, "srt") == (
        "1\n00:00:00,000 --> 00:00:00,400\nxin chào\n\n2\n00:00:00,800 --> 00:00:01,200\na < b & c --> d\n"
    )
    vtt = captions.render(transcript, "vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.400\nxin chào\n\n")
    assert vtt.endswith("\n00:00:00.800 --> 00:00:01.200\na &lt; b &amp; c --&gt; d\n")
    whole = json.loads(captions.render(transcript, "json"))
    assert whole["text"] == "xin chào a < b & c --> d" and whole["seconds"] == 1.2
    assert whole["seconds_used"] == {"audio": 1.2} and whole["note"] is None
    assert whole["segments"][0] == {
        "start": 0.0, "end": 0.4, "text": "xin chào", "modality": "audio", "score": -0.25, "run_lengths": [4, 6],
        "alternatives": [{"text": "khác", "score": -1.0}],
    }  # fmt: skip
    assert captions.clock(3725.9996) == "01:02:06.000"


def test_a_cue_is_one_line_whatever_was_recognised():
    broken = transcript_of("một\n\nhai", "\x85\u2028", "ba\r\v\fbốn\x00\u2029năm")
    assert captions.render(broken, "txt") == "một hai\nba bốn năm\n"
    for form in ("srt", "vtt"):
        cues = captions.render(broken, form).removeprefix("WEBVTT\n\n").rstrip("\n").split("\n\n")
        assert [cue.splitlines()[-1] for cue in cues] == ["một hai", "ba bốn năm"]
        assert {len(cue.splitlines()) for cue in cues} == {3 if form == "srt" else 2}
