"""Reads mouth video and speech, and makes from them the encoder's two inputs.

Letters: T video frames (25 a second), n audio samples (16,000 a second).
"""

import wave
from pathlib import Path

import cv2
import numpy as np
import torch
from python_speech_features import logfbank

from viavsp_jax.errors import InputError

SAMPLE_RATE = 16_000
FRAME_RATE = 25
FRAME_SIZE = 96
CROP_SIZE = 88
# Grey level statistics (of values scaled to 0..1) that AV-HuBERT was trained with.
VIDEO_MEAN, VIDEO_STD = 0.421, 0.165
STACKED_FRAMES = 4  # filterbank frames (100 a second) in one video frame


def read_video(path: str | Path) -> np.ndarray:
    """Decodes a mouth video to grey: uint8 [T, 96, 96].

    Raises InputError if the file is missing or unreadable, has no frame or is not 96x96.
    """
    _require_file(path, "a mouth video")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise InputError(f"{path}: not a readable video file")
        frames = []
        while True:
            decoded, frame = capture.read()
            if not decoded:
                break
            if frame.shape[:2] != (FRAME_SIZE, FRAME_SIZE):
                height, width = frame.shape[:2]
                raise InputError(f"{path}: video is {width}x{height}, expected a {FRAME_SIZE}x{FRAME_SIZE} mouth crop")
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    finally:
        capture.release()
    if not frames:
        raise InputError(f"{path}: no video frame could be decoded")
    return np.stack(frames)


def read_audio(path: str | Path) -> np.ndarray:
    """Reads a 16 kHz mono 16-bit PCM wav file: int16 [n].

    Raises InputError if the file is missing, unreadable, empty, truncated or of another format.
    """
    _require_file(path, "a wav file")
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
            expected_samples = file.getnframes()
            data = file.readframes(expected_samples)
    except (wave.Error, EOFError) as error:
        raise InputError(f"{path}: not a readable PCM wav file ({str(error) or 'unexpected end of file'})") from error
    if found != (SAMPLE_RATE, 1, 16):
        raise InputError(
            f"{path}: audio is {found[0]} Hz, {found[1]} channel(s), {found[2]} bit, "
            f"expected {SAMPLE_RATE} Hz, 1 channel, 16 bit"
        )
    if expected_samples == 0:
        raise InputError(f"{path}: the wav file has no samples")
    if len(data) != 2 * expected_samples:
        raise InputError(
            f"{path}: truncated wav file, {len(data) // 2} samples where its header says {expected_samples}"
        )
    return np.frombuffer(data, dtype="<i2").astype(np.int16)


def _require_file(path: str | Path, expected: str) -> None:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file, expected {expected}")


def audio_features(samples: np.ndarray, num_frames: int) -> np.ndarray:
    """Speech int16 [n] to the encoder's audio input float32 [num_frames, 104].

    Natural-log energies of 26 mel filters each 10 ms, four stacked to one video frame, cut or padded with
    zeros to `num_frames`, then normalised frame by frame.
    """
    aligned = align(stack(filterbank(samples)), num_frames)
    return torch.nn.functional.layer_norm(torch.from_numpy(aligned), aligned.shape[1:]).numpy()


def filterbank(samples: np.ndarray) -> np.ndarray:
    """Natural-log mel energies: int16 [n] -> float32 [frames of 10 ms, 26]."""
    return logfbank(samples, samplerate=SAMPLE_RATE).astype(np.float32)


def stack(features: np.ndarray) -> np.ndarray:
    """Joins each four consecutive rows, zeros appended to fill the last: [F, 26] -> [ceil(F / 4), 104]."""
    missing = -len(features) % STACKED_FRAMES
    padded = np.pad(features, [(0, missing), (0, 0)])
    return padded.reshape(-1, STACKED_FRAMES * features.shape[1])


def align(features: np.ndarray, num_frames: int) -> np.ndarray:
    """Cuts the end or appends zero rows, so that audio has the video's length: [F, C] -> [num_frames, C]."""
    return np.pad(features[:num_frames], [(0, max(0, num_frames - len(features))), (0, 0)])


def video_input(frames: np.ndarray) -> np.ndarray:
    """Grey frames uint8 [T, 96, 96] to the encoder's input: normalised centre crop, float32 [T, 88, 88]."""
    margin = (FRAME_SIZE - CROP_SIZE) // 2
    crop = frames[:, margin : margin + CROP_SIZE, margin : margin + CROP_SIZE]
    return ((crop / 255 - VIDEO_MEAN) / VIDEO_STD).astype(np.float32)
