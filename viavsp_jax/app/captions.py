"""Transcripts as files: plain text, subtitles, JSON."""

import html
import json
from collections.abc import Callable
from typing import Any

from viavsp_jax.app.cues import PLAIN, Cue, Style, check, cues
from viavsp_jax.app.recognizer import Word
from viavsp_jax.app.transcriber import Segment, Transcript
from viavsp_jax.data.features import FRAME_RATE

FORMATS = ("txt", "srt", "vtt", "json")


def render(transcript: Transcript, form: str, style: Style = PLAIN) -> str:
    """A transcript in one of FORMATS.

    Subtitles leave out segments in which nothing was recognised. JSON holds all of them, with the times in seconds, the
    modality that was used (av, audio or video), the alternatives, the run lengths of frames and, if the model tells
    them, the words. Text has a line for each segment.

    Raises InputError if `style` needs words or their confidence, and the transcript has none.
    """
    return {"txt": _txt, "srt": _srt, "vtt": _vtt, "json": _json}[form](transcript, style)


def clock(seconds: float, separator: str = ".") -> str:
    """Hours, minutes, seconds and thousandths: 3725.5 → 01:02:05.500."""
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{separator}{rest % 1000:03}"


def segment_text(segment: Segment, style: Style) -> str:
    """The text of a segment with doubtful words marked."""
    return segment.text if segment.words is None else " ".join(map(style.written, segment.words))


def _txt(transcript: Transcript, style: Style) -> str:
    check(transcript, style)
    return "".join(f"{segment_text(segment, style)}\n" for segment in transcript.segments if segment.text)


def _srt(transcript: Transcript, style: Style) -> str:
    numbered = enumerate(cues(transcript, style), start=1)
    return "\n".join(f"{number}\n{_times(cue, ',')}\n{_shown(cue, style.written)}\n" for number, cue in numbered)


def _vtt(transcript: Transcript, style: Style) -> str:
    def written(word: Word) -> str:
        return html.escape(style.written(word), quote=False)  # must not look like markup

    timed = style.word_timestamps and not style.highlight_words  # the latter has subtitles that last no longer
    shown = [f"{_times(cue, '.')}\n{_shown(cue, written, timed)}\n" for cue in cues(transcript, style)]
    return "\n".join(["WEBVTT\n", *shown])


def _times(cue: Cue, separator: str) -> str:
    return f"{clock(cue.start, separator)} --> {clock(cue.end, separator)}"


def _shown(cue: Cue, written: Callable[[Word], str], timed: bool = False) -> str:
    """The lines of a subtitle; `timed` is whether WebVTT's timestamps stand before all words but the first."""

    def marked(word: Word) -> str:
        if word is cue.spoken:
            return f"<u>{written(word)}</u>"
        return f"<{clock(word.start)}>{written(word)}" if timed and word is not cue.words[0] else written(word)

    return "\n".join(" ".join(map(marked, line)) for line in cue.lines)


def _json(transcript: Transcript, style: Style) -> str:
    check(transcript, style)
    whole = {
        "text": transcript.text,
        "modality": transcript.modality,
        "seconds": transcript.num_frames / FRAME_RATE,
        "seconds_used": {modality: round(seconds, 2) for modality, seconds in transcript.seconds.items()},
        "note": transcript.note,
        "segments": [_segment(segment, style) for segment in transcript.segments],
    }
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def _segment(segment: Segment, style: Style) -> dict[str, Any]:
    fields = {
        "start": segment.times[0],
        "end": segment.times[1],
        "text": segment.text,
        "modality": segment.modality,
        "score": round(segment.score, 4),
        "alternatives": [{"text": one.text, "score": round(one.score, 4)} for one in segment.hypotheses[1:]],
        "run_lengths": segment.run_lengths.tolist(),
    }
    return fields | {"words": [_word(word, style) for word in segment.words]} if segment.words else fields


def _word(word: Word, style: Style) -> dict[str, Any]:
    fields = {
        "word": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "probability": None if word.confidence is None else round(word.confidence, 4),
    }
    return fields | {"doubtful": True} if style.doubts(word) else fields
