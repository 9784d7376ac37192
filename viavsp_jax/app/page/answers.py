"""What a visitor gets for a press of a button, in the visitor's language."""

import contextlib
import dataclasses
import html
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np

from viavsp_jax.app import captions, pictures
from viavsp_jax.app.page import language, views
from viavsp_jax.app.transcriber import Transcriber, Transcript
from viavsp_jax.data.features import FRAME_SIZE
from viavsp_jax.prepare.recordings.mouth import NoFace
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.runtime.errors import InputError

log = logging.getLogger(__name__)

AUTOMATIC = "automatic"
KEPT_FOR = 3000  # seconds, so that all of a visitor's is gone within an hour


@dataclasses.dataclass(frozen=True)
class Transcribed:
    """What a subtitled video is made of, less what the file itself holds: that may be much."""

    transcript: Transcript
    path: str
    stem: str


def transcribe(
    transcriber: Transcriber,
    max_minutes: float,
    spoken: str,
    video: str | None,
    sound: str | None,
    modality: str,
    noisy: bool,
    snr: float,
    beams: int,
    progress: gr.Progress,
) -> Iterator[list[Any]]:
    """What a press of the button does, in the language `spoken`.

    Yields the values of message, results, the button for sound alone, transcript, mouth, what is kept for the subtitled
    video, the button for it, itself, and files. The files are there until it is asked for more; Gradio copies them
    before that.
    """
    path = video or sound
    if path is None:
        yield _refused(language.say("Choose a video or a sound file first, or record one.", spoken))
        return
    # Gradio keeps the visitor's name of a file, less what is no good in names, in a folder of its own.
    name = pathlib.Path(path).name

    def show(what: str, share: float) -> None:
        progress(share, desc=language.told(what, spoken, "working"))

    try:
        show("reading the file", 0.0)
        start = time.monotonic()
        transcript = transcriber(
            path,
            modality=None if modality == AUTOMATIC else modality,
            num_beams=int(beams),
            noise_snr=snr if noisy else None,
            max_seconds=60 * max_minutes,
            progress=show,
        )
        spent = time.monotonic() - start
        if transcript.note:
            transcript = dataclasses.replace(transcript, note=transcript.note.replace(os.fspath(path), name))
        with tempfile.TemporaryDirectory() as folder:
            yield _shown(transcript, spent, spoken, path, pathlib.Path(folder) / pathlib.Path(name).stem)
    except InputError as error:
        yield _refused(_sentence(error, path, spoken), alone=isinstance(error, NoFace) and _sounds(path))
    except Exception:
        log.exception("a recording could not be transcribed")
        sentence = "Something went wrong while this recording was transcribed; the server keeps a note of it."
        yield _refused(language.say(sentence, spoken))


def _sentence(error: InputError, path: str, spoken: str) -> str:
    """What an error says, with the visitor's name of the file."""
    sentence = str(error).replace(os.fspath(path), pathlib.Path(path).name)
    return language.told(sentence, spoken, "This recording cannot be used.")


def _sounds(path: str) -> bool:
    """Whether something can be heard in a file."""
    with contextlib.suppress(InputError):
        return read_recording(path).samples is not None
    return False


def _error(sentence: str) -> str:
    return f'<p class="error" role="alert">{html.escape(sentence)}</p>'


def _refused(sentence: str, alone: bool = False) -> list[Any]:
    """`alone`: whether going on with the sound alone is offered."""
    hidden = gr.update(visible=False)
    return [
        _error(sentence), hidden, gr.update(visible=alone), "", None, None, hidden, hidden,
        *(None for _ in captions.FORMATS),
    ]  # fmt: skip


def _shown(transcript: Transcript, spent: float, spoken: str, path: str, stem: pathlib.Path) -> list[Any]:
    """`stem` is where the files go, without the ends of their names."""
    mouth = None
    if transcript.mouth is not None:
        mouth = stem.with_name(f"{stem.name}.mouth.mp4")
        pictures.write_mouth(transcript, mouth)
    files = []
    for form in captions.FORMATS:
        files.append(stem.with_name(f"{stem.name}.{form}"))
        files[-1].write_text(captions.render(transcript, form), encoding="utf-8")
    filmed = transcript.recording is not None and transcript.recording.size is not None
    return [
        "",
        gr.update(visible=True),
        gr.update(visible=False),
        views.render(transcript, spent, spoken),
        gr.update(value=mouth, visible=mouth is not None),
        Transcribed(_light(transcript), path, stem.name) if filmed else None,
        gr.update(visible=filmed),
        gr.update(value=None, visible=False),
        *files,
    ]


def _light(transcript: Transcript) -> Transcript:
    """Without sound and pictures."""
    mouth = transcript.mouth
    if mouth is not None:
        mouth = dataclasses.replace(mouth, crops=np.empty((0, FRAME_SIZE, FRAME_SIZE), np.uint8))
    return dataclasses.replace(transcript, mouth=mouth, samples=None, recording=None)


def subtitle(
    transcribed: Transcribed | None, max_minutes: float, spoken: str, progress: gr.Progress
) -> Iterator[list[Any]]:
    """Makes the video with subtitles: yields the values of message, the button for it, and itself."""
    hidden = gr.update(visible=False)
    if transcribed is None or not pathlib.Path(transcribed.path).exists():
        gone = language.say("The recording is no longer here, please transcribe it once more.", spoken)
        yield [_error(gone), hidden, hidden]
        return

    def show(share: float) -> None:
        progress(share, desc=language.say("writing the video", spoken))

    show(0.0)
    try:
        recording = read_recording(transcribed.path, 60 * max_minutes)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"{transcribed.stem}.subtitled.mp4"
            pictures.write_video(dataclasses.replace(transcribed.transcript, recording=recording), path, show)
            yield ["", hidden, gr.update(value=path, visible=True)]
    except InputError as error:
        yield [_error(_sentence(error, transcribed.path, spoken)), gr.update(), hidden]
    except Exception:
        log.exception("a video with subtitles could not be made")
        failed = language.say("Something went wrong while the video was made; the server keeps a note of it.", spoken)
        yield [_error(failed), gr.update(), hidden]
