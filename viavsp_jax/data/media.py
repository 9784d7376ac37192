"""Reads mouth video and speech; data/features.py makes the encoder's two inputs from them.

Letters: T video frames (25 a second), n audio samples (16,000 a second).
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from viavsp_jax.data import addresses, wav
from viavsp_jax.data.containers import decoded, demuxed, opened, tracks
from viavsp_jax.data.features import CROP_SIZE, FRAME_SIZE, SAMPLE_RATE
from viavsp_jax.runtime.errors import InputError

# 200 seconds; all frames of a clip are in memory, and the encoder takes far fewer.
MAX_VIDEO_FRAMES = 5000
# Those that hold the video themselves; others name files.
_FORMATS = "asf,avi,flv,matroska,mov,mpeg,mpegts,ogg"
_MOST_PIXELS = 2048 * 2048  # so that a video of another size is named, but a picture bomb is not decoded


def read_video(path: str | Path) -> np.ndarray:
    """Decodes a mouth video to grey: uint8 [T, 96, 96].

    Raises InputError if the file is missing, unreadable or damaged, has no frame, more than MAX_VIDEO_FRAMES or is not
    96x96.
    """
    require_file(path, "a mouth video")
    frames, damage = _decode(addresses.read_bytes(path), str(path))
    if damage:
        raise InputError(f"{path}: damaged, {damage}, expected a whole video")
    return frames


def check_video(path: str | Path) -> None:
    """Raises InputError if `read_video` would refuse a video by what its header says; no frame is decoded."""
    require_file(path, "a mouth video")
    with _opened(addresses.read_bytes(path), str(path)):
        pass


def decode_video(data: bytes, where: str) -> np.ndarray:
    """Decodes the bytes of a mouth video file to grey: uint8 [T, 96, 96]; `where` is named in errors.

    They are taken to be whole, as `read_video` found them to be when they became a record: damaged ones end early.

    Raises InputError if they are not a video, or have no frame, more than MAX_VIDEO_FRAMES or one that is not 96x96.
    """
    return _decode(data, where)[0]


def _decode(data: bytes, where: str) -> tuple[np.ndarray, str]:
    """Frames up to the first that cannot be decoded, and what is damaged, if anything."""
    frames, errors, damage, turns = [], [], "", 0
    with _opened(data, where) as (container, stream):
        # One thread: to start more takes longer than to decode so small a picture.
        stream.codec_context.thread_count, convert = 1, VideoReformatter()
        for frame in decoded(demuxed(container, [stream], errors.append), errors.append):
            if errors:
                break
            _check_size(frame.width, frame.height, where)
            if len(frames) == MAX_VIDEO_FRAMES:
                raise InputError(f"{where}: video of more than {MAX_VIDEO_FRAMES} frames, expected a short clip")
            if frame.is_corrupt:
                damage = damage or f"a part of frame {len(frames)} is lost"
            turns = turns if frames else round(frame.rotation / 90)  # those that make it upright
            frames.append(_grey(frame, convert, where))
        if not frames:
            reason = f"{stream.codec_context.name}: {errors[0] if errors else 'there is none'}"
            raise InputError(f"{where}: no video frame could be decoded ({reason}), expected a video as H.264 in mp4")
    if errors:
        damage = f"frame {len(frames)} cannot be decoded ({errors[0]})"
    return np.rot90(np.stack(frames), turns, (1, 2)), damage


def _grey(frame: av.VideoFrame, convert: VideoReformatter, where: str) -> np.ndarray:
    """uint8 [96, 96], by way of colours, as OpenCV reads a video: rounding is the same."""
    try:
        picture = convert.reformat(frame, format="bgr24", threads=1).to_ndarray()
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{where}: a frame cannot be converted ({frame.format.name}: {error})") from error
    return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)


def _check_size(width: int, height: int, where: str) -> None:
    if (width, height) != (FRAME_SIZE, FRAME_SIZE):
        raise InputError(f"{where}: video is {width}x{height}, expected a {FRAME_SIZE}x{FRAME_SIZE} mouth crop")


@contextlib.contextmanager
def _opened(data: bytes, where: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        container = opened(io.BytesIO(data), _FORMATS, _MOST_PIXELS)
    except (OSError, av.FFmpegError) as error:  # both: FFmpeg may seek to where no file can be
        raise InputError(f"{where}: not a readable video file ({error.strerror or error})") from error
    with container:
        if not container.streams.video:
            raise InputError(f"{where}: not a readable video file (it has no pictures)")
        found = tracks(container, "video")
        if not found:
            raise InputError(
                f"{where}: its video is of a kind that FFmpeg has no decoder for here, expected H.264 in mp4, as "
                "ffmpeg -c:v libx264 writes it"
            )
        stream = found[0]
        if stream.width and stream.height:  # before the first frame, too: to decode a huge one takes gigabytes
            _check_size(stream.width, stream.height, where)
        yield container, stream


def read_audio(path: str | Path) -> np.ndarray:
    """Reads a 16 kHz mono 16-bit PCM wav file: int16 [n].

    Raises InputError if the file is missing, unreadable, empty, truncated or of another format.
    """
    return wav.read_samples(path, _wav_layout(path))


def check_audio(path: str | Path) -> None:
    """Raises InputError if `read_audio` would refuse a wav file; of its samples none is read."""
    _wav_layout(path)


def _wav_layout(path: str | Path) -> wav.Layout:
    require_file(path, "a wav file")
    try:
        layout = wav.read_layout(path)
    except ValueError as error:
        raise InputError(f"{path}: not a readable PCM wav file ({error})") from error
    if (layout.rate, layout.channels, layout.bits) != (SAMPLE_RATE, 1, 16):
        raise InputError(
            f"{path}: audio is {layout.rate} Hz, {layout.channels} channel(s), {layout.bits} bit, "
            f"expected {SAMPLE_RATE} Hz, 1 channel, 16 bit"
        )
    if not layout.size // 2:
        raise InputError(f"{path}: the wav file has no samples")
    if layout.found < layout.size:
        raise InputError(
            f"{path}: truncated wav file, {layout.found // 2} samples where its header says {layout.size // 2}"
        )
    return layout


def require_file(path: str | Path, expected: str) -> None:
    """Raises InputError, which says what was `expected`, if there is no file of an address."""
    if not addresses.exists(path):
        raise InputError(f"{path}: no such file, expected {expected}")


def crop(frames: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    """Cuts 88x88 pixels from a row and a column on, mirrored if `flip`: uint8 [T, 96, 96] -> uint8 [T, 88, 88]."""
    cut = frames[:, top : top + CROP_SIZE, left : left + CROP_SIZE]
    return cut[:, :, ::-1] if flip else cut
