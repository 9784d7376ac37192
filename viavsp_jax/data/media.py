"""Reads mouth video and speech; convert/hub/feature_extraction_viavsp.py makes from them the encoder's two inputs.

Letters: T video frames (25 a second), n audio samples (16,000 a second).
"""

import contextlib
import os
import wave
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from convert.hub.feature_extraction_viavsp import (  # noqa: F401
    AUDIO_DIM,
    CENTER,
    CROP_SIZE,
    FRAME_SIZE,
    NUM_FILTERS,
    SAMPLE_RATE,
    STACKED_FRAMES,
    VIDEO_MEAN,
    VIDEO_STD,
    align,
    audio_features,
    center_crop,
    filterbank,
    layer_norm,
    normalize,
    stack,
    video_input,
)
from viavsp_jax.errors import InputError

FRAME_RATE = 25
# 200 seconds; all frames of a clip are in memory, and the encoder takes far fewer.
MAX_VIDEO_FRAMES = 5000

# Formats that hold the video themselves. Others name files, by which a stranger's video could have any opened, itself
# too and without end. OpenCV has no other place for it.
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "format_whitelist;mov,matroska,avi"


def read_video(path: str | Path) -> np.ndarray:
    """Decodes a mouth video to grey: uint8 [T, 96, 96].

    Raises InputError if the file is missing or unreadable, has no frame, more than MAX_VIDEO_FRAMES or is not 96x96.
    """
    _require_file(path, "a mouth video")
    return decode_video(Path(path).read_bytes(), str(path))


def decode_video(data: bytes, where: str) -> np.ndarray:
    """Decodes the bytes of a mouth video file to grey: uint8 [T, 96, 96]; `where` is named in errors.

    Raises InputError if they are not a video, or have no frame, more than MAX_VIDEO_FRAMES or one that is not 96x96.
    """
    frames = []
    with _open_video(data) as capture:
        if not capture.isOpened():
            raise InputError(f"{where}: not a readable video file")
        declared = [round(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        if any(declared):  # before the first frame, too: to decode a huge one takes gigabytes
            _check_size(*declared, where)
        while True:
            decoded, frame = capture.read()
            if not decoded:
                break
            _check_size(frame.shape[1], frame.shape[0], where)
            if len(frames) == MAX_VIDEO_FRAMES:
                raise InputError(f"{where}: video of more than {MAX_VIDEO_FRAMES} frames, expected a short clip")
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    if not frames:
        raise InputError(f"{where}: no video frame could be decoded")
    return np.stack(frames)


def _check_size(width: int, height: int, where: str) -> None:
    if (width, height) != (FRAME_SIZE, FRAME_SIZE):
        raise InputError(f"{where}: video is {width}x{height}, expected a {FRAME_SIZE}x{FRAME_SIZE} mouth crop")


@contextlib.contextmanager
def _open_video(data: bytes) -> Iterator[cv2.VideoCapture]:
    """FFmpeg on a file in memory (Linux): OpenCV 5.0 also takes a Python stream, but crashes when that is released."""
    with os.fdopen(os.memfd_create("mouth video"), "wb") as file:
        file.write(data)
        file.flush()
        # One thread: to start more takes longer than to decode so small a picture.
        capture = cv2.VideoCapture(f"/proc/self/fd/{file.fileno()}", cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        try:
            yield capture
        finally:
            capture.release()


def read_audio(path: str | Path) -> np.ndarray:
    """Reads a 16 kHz mono 16-bit PCM wav file: int16 [n].

    Raises InputError if the file is missing, unreadable, empty, truncated or of another format.
    """
    with _open_wav(path) as file:
        expected_samples = file.getnframes()
        # Not more than there can be: room is made for what is asked for.
        data = file.readframes(min(expected_samples, os.path.getsize(path)))
    if len(data) != 2 * expected_samples:
        raise InputError(
            f"{path}: truncated wav file, {len(data) // 2} samples where its header says {expected_samples}"
        )
    return np.frombuffer(data, dtype="<i2").astype(np.int16)


def check_audio(path: str | Path) -> None:
    """Raises InputError if `read_audio` would refuse a wav file; of its samples only the last is read."""
    with _open_wav(path) as file:
        expected_samples = file.getnframes()
        file.setpos(expected_samples - 1)
        if len(file.readframes(1)) != 2:
            raise InputError(f"{path}: truncated wav file, its header says {expected_samples} samples")


@contextlib.contextmanager
def _open_wav(path: str | Path) -> Iterator[wave.Wave_read]:
    _require_file(path, "a wav file")
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
            if found != (SAMPLE_RATE, 1, 16):
                raise InputError(
                    f"{path}: audio is {found[0]} Hz, {found[1]} channel(s), {found[2]} bit, "
                    f"expected {SAMPLE_RATE} Hz, 1 channel, 16 bit"
                )
            if file.getnframes() == 0:
                raise InputError(f"{path}: the wav file has no samples")
            yield file
    except (wave.Error, EOFError, RuntimeError) as error:  # the last, without a word: chunks beyond their end
        raise InputError(f"{path}: not a readable PCM wav file ({str(error) or 'unexpected end of file'})") from error


def _require_file(path: str | Path, expected: str) -> None:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file, expected {expected}")


def crop(frames: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    """Cuts 88x88 pixels from a row and a column on, mirrored if `flip`: uint8 [T, 96, 96] -> uint8 [T, 88, 88]."""
    cut = frames[:, top : top + CROP_SIZE, left : left + CROP_SIZE]
    return cut[:, :, ::-1] if flip else cut
