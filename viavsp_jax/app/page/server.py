"""The web page: a recording in, its transcript, what the model saw and files to download out.

Visitors are strangers. What they may ask for is in viavsp_jax/app/page/gate.py. What they send is of limited size and
length, and is transcribed one after another; what is written for them goes into temporary folders; what they are told
names their file, never a path of the server.
"""

import contextlib
import html
import logging
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from viavsp_jax.app import captions, pictures
from viavsp_jax.app.page import folder, views
from viavsp_jax.app.page.gate import MAX_FILE_SIZE, Gate
from viavsp_jax.app.transcriber import Transcriber, Transcript
from viavsp_jax.runtime.errors import InputError

log = logging.getLogger(__name__)

_MAX_WAITING = 20  # visitors
_MAX_SESSIONS = 100  # whose last results are held in memory
_MAX_BEAMS = 10
_DELETE_EVERY, _DELETE_AFTER = 300, 3000  # seconds, so that an upload is gone within an hour
_FOLDER = pathlib.Path(__file__).parent
_TITLE = "ViAVSP: Vietnamese from lips and sound"
_AUTOMATIC = "automatic"
_MODALITIES = [
    ("Automatic · Tự động", _AUTOMATIC),
    ("Lips and sound · Hình và tiếng", "av"),
    ("Sound alone · Chỉ tiếng", "audio"),
    ("Lips alone · Chỉ hình", "video"),
]
# Those of the visitor's system: the page needs no other host.
_FONTS = ["system-ui", "Segoe UI", "Noto Sans", "DejaVu Sans", "sans-serif"]


def build(transcriber: Transcriber, max_minutes: float = 10.0) -> gr.Blocks:
    """The page, for `serve`; recordings of more than `max_minutes` are refused."""
    with gr.Blocks(title=_TITLE, analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{_TITLE}</h1><p lang='vi'>Nhận dạng tiếng Việt từ khẩu hình và tiếng nói</p>", elem_id="title")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                video, sound = _inputs()
            with gr.Column(scale=2, min_width=320):
                options = _options(transcriber.recognizer.num_beams)
                button = gr.Button("Transcribe · Nhận dạng", variant="primary", elem_id="transcribe")
                message = gr.HTML(elem_id="message", min_height=64)
        with gr.Column(visible=False, elem_id="results") as results:
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    follow = (_FOLDER / "page.js").read_text(encoding="utf-8")
                    transcript = gr.HTML(elem_id="transcript", js_on_load=follow, apply_default_css=False)
                with gr.Column(scale=1, min_width=240, elem_id="side"):
                    gr.HTML(
                        "As the model sees it <span class='vi' lang='vi'>Khẩu hình</span>",
                        elem_id="seen",
                        elem_classes="caption",
                    )
                    mouth = gr.Video(show_label=False, height=250, buttons=[], elem_id="mouth")
                    gr.HTML("Download <span class='vi' lang='vi'>Tải về</span>", elem_classes="caption")
                    with gr.Row(elem_id="downloads"):
                        files = [
                            gr.DownloadButton(form, size="sm", min_width=40, elem_id=f"download_{form}")
                            for form in captions.FORMATS
                        ]
        gr.HTML(
            f"Up to {max_minutes:g} minutes and {MAX_FILE_SIZE // 10**6} MB. What you send is removed within an hour. "
            "<span class='vi' lang='vi'>Tệp tải lên được xóa trong vòng một giờ.</span>",
            elem_id="foot",
        )
        # The last that is given counts.
        gr.on([video.upload, video.stop_recording], None, None, sound, js="() => null", api_visibility="private")
        gr.on([sound.upload, sound.stop_recording], None, None, video, js="() => null", api_visibility="private")

        def event(*values, progress=gr.Progress()):  # noqa: B008  Gradio wants it so
            yield from transcribe(transcriber, max_minutes, *values, progress=progress)

        button.click(
            event,
            [video, sound, *options],
            [message, results, transcript, mouth, *files],
            show_progress_on=message,
            concurrency_limit=1,
            api_visibility="private",
        )
    return blocks.queue(max_size=_MAX_WAITING, api_open=False)


def serve(blocks: gr.Blocks, host: str, port: int, own: pathlib.Path) -> None:
    """Shows the page that `build` made until the process is interrupted.

    What visitors send and get lies in the folder `own`, for temporary files, in the folder that Gradio uses.

    Raises InputError if the page cannot be had at that host and port.
    """
    uploads = pathlib.Path(get_upload_folder())
    events = {number for number, event in blocks.fns.items() if event.fn is not None}
    gate = Middleware(Gate, folder=own, uploads=uploads, events=events)
    try:
        _, url, _ = blocks.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False,
            max_file_size=MAX_FILE_SIZE, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
            state_session_capacity=_MAX_SESSIONS, app_kwargs={"middleware": [gate]},
            theme=gr.themes.Default(primary_hue="blue", font=_FONTS, font_mono=["monospace"]),
            css_paths=_FOLDER / "page.css",
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"the page cannot be shown at {host}:{port} ({error}), expected a free port") from error
    print(f"The page is at {url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while not threading.Event().wait(_DELETE_EVERY):
            folder.delete_old(uploads, _DELETE_AFTER)
    blocks.close(verbose=False)


def _inputs() -> tuple[gr.Video, gr.Audio]:
    with gr.Tabs():
        with gr.Tab("Video"):
            video = gr.Video(
                sources=["upload", "webcam"], include_audio=True, show_label=False, buttons=[],
                elem_id="recording",
            )  # fmt: skip
        with gr.Tab("Sound · Âm thanh"):
            sound = gr.Audio(
                sources=["upload", "microphone"], type="filepath", show_label=False, buttons=[], elem_id="sound"
            )
    return video, sound


def _options(num_beams: int) -> list[gr.components.Component]:
    """Modality, whether to add noise and how much, beams."""
    modality = gr.Radio(_MODALITIES, value=_AUTOMATIC, label="What is used · Tín hiệu", elem_id="modality")
    noisy = gr.Checkbox(label="Add babble to the sound · Thêm tiếng ồn", elem_id="noisy")
    # page.css shows it where it counts: the queue is for transcripts.
    snr = gr.Slider(-10, 20, value=0, step=1, label="Signal-to-noise ratio, dB", elem_id="snr")
    beams = gr.Slider(
        1, max(_MAX_BEAMS, num_beams), value=num_beams, step=1, label="Beams of the search · Số nhánh tìm kiếm",
        elem_id="beams",
    )  # fmt: skip
    return [modality, noisy, snr, beams]


def transcribe(
    transcriber: Transcriber,
    max_minutes: float,
    video: str | None,
    sound: str | None,
    modality: str,
    noisy: bool,
    snr: float,
    beams: int,
    progress: gr.Progress,
) -> Iterator[list[Any]]:
    """What a press of the button does: yields the values of message, results, transcript, mouth and files.

    The files are there until it is asked for more; Gradio copies them before that.
    """
    path = video or sound
    if path is None:
        yield _refused("Choose a video or a sound file first, or record one.")
        return
    # Gradio keeps the visitor's name of a file, less what is no good in names, in a folder of its own.
    name = pathlib.Path(path).name
    try:
        progress(0.0, desc="reading the file")
        start = time.monotonic()
        transcript = transcriber(
            path,
            modality=None if modality == _AUTOMATIC else modality,
            num_beams=int(beams),
            noise_snr=snr if noisy else None,
            max_seconds=60 * max_minutes,
            progress=lambda what, share: progress(share, desc=what),
        )
        spent = time.monotonic() - start
        with tempfile.TemporaryDirectory() as folder:
            yield _shown(transcript, spent, pathlib.Path(folder) / pathlib.Path(name).stem)
    except InputError as error:
        yield _refused(str(error).replace(os.fspath(path), name))
    except Exception:
        log.exception("a recording could not be transcribed")
        yield _refused("Something went wrong while this recording was transcribed; the server keeps a note of it.")


def _refused(sentence: str) -> list[Any]:
    message = f'<p class="error" role="alert">{html.escape(sentence)}</p>'
    return [message, gr.update(visible=False), "", None, *(None for _ in captions.FORMATS)]


def _shown(transcript: Transcript, spent: float, stem: pathlib.Path) -> list[Any]:
    """`stem` is where the files go, without the ends of their names."""
    mouth = None
    if transcript.mouth is not None:
        mouth = stem.with_name(f"{stem.name}.mouth.mp4")
        pictures.write_mouth(transcript, mouth)
    files = []
    for form in captions.FORMATS:
        files.append(stem.with_name(f"{stem.name}.{form}"))
        files[-1].write_text(captions.render(transcript, form), encoding="utf-8")
    return [
        "",
        gr.update(visible=True),
        views.render(transcript, spent),
        gr.update(value=mouth, visible=mouth is not None),
        *files,
    ]
