"""What tests let worker processes do: at the clip that the environment names, they die, as of a codec."""

import os
from collections.abc import Sequence

from viavsp_jax.prepare.features import reading
from viavsp_jax.prepare.features.reading import Changes, Media
from viavsp_jax.prepare.manifest_files import Clip
from viavsp_jax.prepare.recordings.mouth_clips import ClipMaker, Source

DEADLY = "VIAVSP_TEST_DEADLY_ID"


def read_batch(clips: Sequence[Clip], changes: Changes, waveform: str) -> list[Media | str]:
    """As reading._read_batch."""
    found = []
    for clip in clips:
        if clip.id == os.environ[DEADLY]:
            os.abort()
        found += reading._read_batch([clip], changes, waveform)
    return found


class DeadlyClipMaker(ClipMaker):
    def __call__(self, source: Source) -> dict:
        if source.id == os.environ[DEADLY]:
            os.abort()
        return super().__call__(source)
