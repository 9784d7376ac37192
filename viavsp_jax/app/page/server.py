"""The web page: a recording in, its transcript, what the model saw and files to download out.

Visitors are strangers. What they may ask for is in viavsp_jax/app/page/gate.py. What they send is of limited size and
length, and is transcribed one after another; what is written for them goes into temporary folders; what they are told
names their file, never a path of the server.
"""

import contextlib
import pathlib
import threading

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from viavsp_jax.app.page import folder
from viavsp_jax.app.page.answers import KEPT_FOR
from viavsp_jax.app.page.front import Front
from viavsp_jax.app.page.gate import MAX_FILE_SIZE, Gate
from viavsp_jax.app.page.layout import EXAMPLE, FOLDER, Labels, build
from viavsp_jax.app.transcriber import Transcriber
from viavsp_jax.runtime.errors import InputError

_MAX_SESSIONS = 100  # whose last results are held in memory
_DELETE_EVERY = 300  # seconds
# Those of the visitor's system: the page needs no other host.
_FONTS = ["system-ui", "Segoe UI", "Noto Sans", "DejaVu Sans", "sans-serif"]


def serve(transcriber: Transcriber, max_minutes: float, host: str, port: int, own: pathlib.Path) -> None:
    """Shows the page until the process is interrupted; recordings of more than `max_minutes` are refused.

    What visitors send and get lies in the folder `own`, for temporary files, in the folder that Gradio uses.

    Raises InputError if the page cannot be had at that host and port.
    """
    labels = Labels()
    blocks = build(transcriber, max_minutes, labels)
    uploads = pathlib.Path(get_upload_folder())
    events = {number for number, event in blocks.fns.items() if event.fn is not None}
    passed = [Middleware(Gate, folder=own, uploads=uploads, events=events), Middleware(Front)]
    try:
        _, url, _ = blocks.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False,
            max_file_size=MAX_FILE_SIZE, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
            state_session_capacity=_MAX_SESSIONS, app_kwargs={"middleware": passed}, i18n=labels.i18n,
            allowed_paths=[str(EXAMPLE)],  # may be copied to the visitors' files; the gate serves only these
            theme=gr.themes.Default(primary_hue="blue", font=_FONTS, font_mono=["monospace"]),
            css_paths=FOLDER / "page.css",
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"the page cannot be shown at {host}:{port} ({error}), expected a free port") from error
    print(f"The page is at {url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while not threading.Event().wait(_DELETE_EVERY):
            folder.delete_old(uploads, KEPT_FOR)
    blocks.close(verbose=False)
