"""Writes mouth crops, with what is said if wanted, as a video file. T frames, n audio samples."""

from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange

from viavsp_jax.data.features import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE

# 51 dB from the crops, 14 to 23 kB a second. With mbtree, the same crops give another file each time.
_QUALITY = {"crf": "10", "x264-params": "mbtree=0"}
_SOUND_BIT_RATE = 64_000  # as in ViCocktail
_NO_COLOUR = np.full((FRAME_SIZE // 2, FRAME_SIZE), 128, np.uint8)


def write_video(file: str | BinaryIO, crops: np.ndarray, samples: np.ndarray | None = None) -> None:
    """Writes crops uint8[T, 96, 96] as H.264 in an mp4 file, 25 a second, one thread; samples int16[n] as AAC."""
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=_QUALITY)
        stream.width, stream.height, stream.pix_fmt = FRAME_SIZE, FRAME_SIZE, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.thread_count = ColorRange.JPEG, 1
        sound = None
        if samples is not None:
            sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            sound.bit_rate = _SOUND_BIT_RATE
        for crop in crops:
            frame = av.VideoFrame.from_ndarray(np.concatenate([crop, _NO_COLOUR]), "yuv420p")
            frame.color_range = ColorRange.JPEG
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _write_sound(container, sound, samples)


def _write_sound(container: av.container.OutputContainer, stream: av.AudioStream, samples: np.ndarray) -> None:
    values, length = (samples / 2**15).astype(np.float32)[None], stream.codec_context.frame_size
    for start in range(0, len(samples), length):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values[:, start : start + length]), "fltp", "mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
