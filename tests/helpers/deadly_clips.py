"""What test_mouths.py lets worker processes do; apart from deadly_work.py, so that they start in no time."""

import os
import time

from viavsp_jax.prepare.recordings.mouth_clips import ClipMaker, Source

ABORTS, HANGS = "1", "3"


class BadClipMaker(ClipMaker):
    """Dies of one recording, as of a codec, and never comes back from another."""

    def __call__(self, source: Source) -> dict:
        if source.id == ABORTS:
            os.abort()
        if source.id == HANGS:
            time.sleep(600)
        return super().__call__(source)
