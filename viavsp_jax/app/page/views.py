"""What the web page shows of a transcript, as HTML.

Letters: T video frames (25 a second), n audio samples (16,000 a second), U runs of frames.
"""

import base64
import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Iterator

import cv2
import jinja2
import markupsafe
import numpy as np

from viavsp_jax.app.cues import Style
from viavsp_jax.app.inputs import USED
from viavsp_jax.app.page import language
from viavsp_jax.app.transcriber import Segment, Transcript
from viavsp_jax.data.features import FRAME_RATE, SAMPLES_PER_FRAME

_FOLDER = pathlib.Path(__file__).parent
_THUMBNAIL = 56  # pixels
_THUMBNAIL_FRAMES = 5  # one stands for so many frames
_PEAKS = 4  # points of the waveform for each frame
_STYLE = Style(min_confidence=0.5)  # words that are as likely wrong are shown as doubtful


@dataclasses.dataclass(frozen=True)
class _Said:
    """A word of a segment as transcript.html shows it."""

    text: str
    start: float  # seconds
    end: float
    percent: int | None  # how likely it is right; None: the model cannot tell
    doubtful: bool


@dataclasses.dataclass(frozen=True)
class _View:
    """A segment as transcript.html shows it."""

    times: tuple[float, float]
    used: str  # av, audio or video in words
    words: list[str]
    said: list[_Said]  # the same words; empty where the model does not tell when they are said
    score: float
    # The other hypotheses: their words, each with whether the best one lacks it there, and scores.
    alternatives: list[tuple[list[tuple[str, bool]], float]]
    thumbnails: str | None  # data URI
    waveform: str | None  # path of an SVG, as wide as there are frames, from -1 to 1
    runs: list[tuple[int, float, float]]  # frames, start and end in seconds
    ticks: list[tuple[float, float]]  # place in percent, seconds
    frames: int


def render(transcript: Transcript, seconds: float, spoken: str) -> str:
    """A transcript as HTML: its text, how it came about, and for each segment what was merged and the alternatives.

    `seconds` is how long it took, `spoken` the language of what is around the text.
    """
    length = transcript.num_frames / FRAME_RATE
    loud = None if transcript.samples is None else peaks(transcript.samples, transcript.num_frames)
    return (
        _environment(spoken)
        .get_template("transcript.html")
        .render(
            text=transcript.text,
            used=[(seconds, USED[modality]) for modality, seconds in transcript.seconds.items()],
            note=transcript.note and language.told(transcript.note, spoken, "A part of the recording is not used."),
            length=length,
            spent=seconds,
            factor=seconds / length,
            frames=sum(segment.end - segment.first for segment in transcript.segments),
            vectors=sum(len(segment.run_lengths) for segment in transcript.segments),
            guessed=0 if transcript.mouth is None else 1 - float(transcript.mouth.found.mean()),
            segments=[_view(transcript, segment, loud) for segment in transcript.segments],
        )
    )


@functools.cache
def _environment(spoken: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,  # a model may write anything
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def say(sentence: str, **values: object) -> markupsafe.Markup:
        return markupsafe.Markup(language.pattern(sentence, spoken)).format(**values)

    def decimal(number: float, digits: int) -> str:
        return language.decimal(number, digits, spoken)

    environment.globals["say"] = say
    environment.filters["decimal"] = decimal
    environment.filters["clock"] = lambda time: f"{int(time) // 60}:{decimal(time % 60, 2).zfill(5)}"
    return environment


def _view(transcript: Transcript, segment: Segment, loud: np.ndarray | None) -> _View:
    words = segment.text.split()
    ends = np.cumsum(segment.run_lengths)
    crops = None if transcript.mouth is None else transcript.mouth.crops[segment.first : segment.end]
    return _View(
        times=segment.times,
        used=USED[segment.modality],
        words=words,
        said=[
            _Said(
                word.text,
                word.start,
                word.end,
                None if word.confidence is None else round(100 * word.confidence),
                _STYLE.doubts(word),
            )
            for word in segment.words or ()
        ],
        score=segment.score,
        alternatives=[
            (list(marked(words, other.text.split())), other.score)
            for other in segment.hypotheses[1:]
            if other.text != segment.text
        ],
        thumbnails=None if crops is None else _data_uri(thumbnails(crops)),
        waveform=None if loud is None else outline(loud[_PEAKS * segment.first : _PEAKS * segment.end]),
        runs=[
            (int(run), (segment.first + end - run) / FRAME_RATE, (segment.first + end) / FRAME_RATE)
            for run, end in zip(segment.run_lengths, ends, strict=True)
        ],
        ticks=_ticks(segment),
        frames=segment.end - segment.first,
    )


def marked(best: list[str], other: list[str]) -> Iterator[tuple[str, bool]]:
    """The words of another hypothesis, and whether each is not where the best one has it."""
    for kind, _, _, start, end in difflib.SequenceMatcher(None, best, other, autojunk=False).get_opcodes():
        for word in other[start:end]:
            yield word, kind != "equal"


def thumbnails(crops: np.ndarray) -> np.ndarray:
    """A strip of the mouth in which a pixel column is a moment: uint8[T, 96, 96] → uint8[56, 56 T / 5].

    Each picture is the middle one of 5; the last is cut off where the crops end.
    """
    starts = range(0, len(crops), _THUMBNAIL_FRAMES)
    chosen = [crops[min(start + _THUMBNAIL_FRAMES // 2, len(crops) - 1)] for start in starts]
    small = [cv2.resize(crop, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA) for crop in chosen]
    return np.concatenate(small, 1)[:, : round(len(crops) * _THUMBNAIL / _THUMBNAIL_FRAMES)]


def _data_uri(picture: np.ndarray) -> str:
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def peaks(samples: np.ndarray, num_frames: int) -> np.ndarray:
    """How far the waveform of int16[n] reaches, in shares of its farthest: float32[4 T]."""
    padded = np.zeros(num_frames * SAMPLES_PER_FRAME, np.float32)
    kept = samples[: len(padded)]
    padded[: len(kept)] = kept
    reach = np.abs(padded).reshape(num_frames * _PEAKS, -1).max(1)
    return reach / max(1.0, float(reach.max()))


def outline(reach: np.ndarray) -> str:
    """What `peaks` gives, or a piece of it, as a path of SVG: x in frames, y from -1 to 1."""
    places = (np.arange(len(reach)) + 0.5) / _PEAKS
    reach = np.maximum(0.02, reach)  # silence is a line
    upper = [f"{x:.3f} {-y:.2f}" for x, y in zip(places, reach, strict=True)]
    lower = [f"{x:.3f} {y:.2f}" for x, y in zip(places[::-1], reach[::-1], strict=True)]
    return f"M{'L'.join(upper + lower)}Z"


def _ticks(segment: Segment) -> list[tuple[float, float]]:
    """Whole half seconds of the recording that lie in a segment."""
    start, end = segment.times
    times = np.arange(np.ceil(2 * start), np.floor(2 * end) + 1) / 2
    # A tick at the right edge would have no room for its label.
    return [(100 * (time - start) / (end - start), float(time)) for time in times if time < end - 0.1]
