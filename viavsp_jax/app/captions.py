"""Transcripts as files: plain text, subtitles, JSON."""

import html
import json

from viavsp_jax.app.transcriber import Transcript
from viavsp_jax.data.features import FRAME_RATE

FORMATS = ("txt", "srt", "vtt", "json")


def render(transcript: Transcript, form: str) -> str:
    """A transcript in one of FORMATS.

    Subtitles leave out segments in which nothing was recognised. JSON holds all of them, with the times in seconds, the
    modality that was used (av, audio or video), the alternatives and the run lengths of frames.
    """
    return {"txt": _txt, "srt": _srt, "vtt": _vtt, "json": _json}[form](transcript)


def clock(seconds: float, separator: str = ".") -> str:
    """Hours, minutes, seconds and thousandths: 3725.5 → 01:02:05.500."""
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{separator}{rest % 1000:03}"


def _spoken(transcript: Transcript, separator: str) -> list[tuple[str, str]]:
    """(times, text) of the segments with text."""
    return [
        (" --> ".join(clock(time, separator) for time in segment.times), segment.text)
        for segment in transcript.segments
        if segment.text
    ]


def _txt(transcript: Transcript) -> str:
    return "".join(f"{text}\n" for _, text in _spoken(transcript, "."))


def _srt(transcript: Transcript) -> str:
    spoken = enumerate(_spoken(transcript, ","), start=1)
    return "\n".join(f"{number}\n{times}\n{text}\n" for number, (times, text) in spoken)


def _vtt(transcript: Transcript) -> str:
    # Text must not look like markup.
    cues = [f"{times}\n{html.escape(text, quote=False)}\n" for times, text in _spoken(transcript, ".")]
    return "\n".join(["WEBVTT\n", *cues])


def _json(transcript: Transcript) -> str:
    segments = [
        {
            "start": segment.times[0],
            "end": segment.times[1],
            "text": segment.text,
            "modality": segment.modality,
            "score": round(segment.score, 4),
            "alternatives": [{"text": one.text, "score": round(one.score, 4)} for one in segment.hypotheses[1:]],
            "run_lengths": segment.run_lengths.tolist(),
        }
        for segment in transcript.segments
    ]
    whole = {
        "text": transcript.text,
        "modality": transcript.modality,
        "seconds": transcript.num_frames / FRAME_RATE,
        "seconds_used": {modality: round(seconds, 2) for modality, seconds in transcript.seconds.items()},
        "note": transcript.note,
        "segments": segments,
    }
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"
