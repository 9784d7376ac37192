"""Shows the web page on which recordings are transcribed.

    python -m viavsp_jax.app --model runs/demo

Only this machine can open it unless --host says otherwise.
"""

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import tempfile
from collections.abc import Sequence

from viavsp_jax.app import needs_extra
from viavsp_jax.app.page.folder import own_folder
from viavsp_jax.runtime.errors import reported_to_user
from viavsp_jax.runtime.options import real, whole
from viavsp_jax.runtime.startup import quiet_libraries

with needs_extra(__name__):
    from viavsp_jax.transcribe import add_model_options, load_transcriber


def run(args: argparse.Namespace) -> None:
    """Loads the model and shows the page until the process is interrupted."""
    # Otherwise each of the server's threads keeps memory of its own, which grows for hours (glibc: M_ARENA_MAX).
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(-8, 1)
    # SIGTERM ends as Ctrl-C does: in order, so that nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with own_folder() as folder:
        # What visitors send and get lies in this folder, which goes away with the page.
        tempfile.tempdir, os.environ["GRADIO_TEMP_DIR"] = str(folder), str(folder / "gradio")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        # Imported here because Gradio reads some of this when it is imported.
        with needs_extra(__name__):
            from viavsp_jax.app.page.server import serve

        serve(load_transcriber(args), args.max_minutes, args.host, args.port, folder)


@reported_to_user()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m viavsp_jax.app",
        description=__doc__.split("\n")[0],
        epilog="The face is found by dlib's landmark model, which was trained on iBUG 300-W: no commercial use.",
    )
    add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all (default 127.0.0.1)")
    parser.add_argument("--port", type=whole("--port", 1, 65535), default=7860, help="(default 7860)")
    parser.add_argument(
        "--max_minutes", type=real("--max_minutes", above=0), default=10, help="of a recording (default 10)"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    quiet_libraries()
    run(args)


if __name__ == "__main__":
    main()
