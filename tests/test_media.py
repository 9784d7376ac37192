"""Media features against arrays recorded from the reference, and one clear error for each bad file."""

import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from viavsp_jax.data import media
from viavsp_jax.errors import InputError

MEDIA = Path(__file__).parent / "golden" / "media"
UTTERANCES = sorted(path.stem for path in MEDIA.glob("utt*.npz"))


def test_recorded_audio_is_once_too_short_and_once_too_long():
    differences = [
        len(data["stacked"]) - len(data["frames"]) for data in (np.load(MEDIA / f"{u}.npz") for u in UTTERANCES)
    ]
    assert min(differences) < 0 < max(differences)


def test_speech_shorter_than_one_window():
    features = media.audio_features(np.array([1000, -1000, 500], np.int16), num_frames=2)
    assert features.shape == (2, 104)
    assert np.isfinite(features).all() and not features[1].any()


def write_video(path, size, num_frames=3):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), media.FRAME_RATE, size)
    for _ in range(num_frames):
        writer.write(np.zeros((size[1], size[0], 3), np.uint8))
    writer.release()


def write_wav(path, rate=16_000, channels=1, width=2, samples=100):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(samples * channels * width))


@pytest.mark.parametrize("size", [(64, 96), (112, 112)])
def test_video_of_another_size_is_refused(tmp_path, size):
    path = tmp_path / "clip.mp4"
    write_video(path, size)
    with pytest.raises(InputError, match=f"clip.mp4: video is {size[0]}x{size[1]}, expected a 96x96 mouth crop"):
        media.read_video(path)


def test_video_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(InputError, match="clip.mp4: no such file, expected a mouth video"):
        media.read_video(path)
    whole = (MEDIA / f"{UTTERANCES[0]}.mp4").read_bytes()
    for content in (b"", b"not a video", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="clip.mp4: not a readable video file"):
            media.read_video(path)
    write_video(path, (96, 96), num_frames=0)
    with pytest.raises(InputError, match="clip.mp4: "):
        media.read_video(path)
    # The index is whole, but the coded frames are wiped out.
    start, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
    path.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
    with pytest.raises(InputError, match="clip.mp4: no video frame could be decoded"):
        media.read_video(path)


def test_a_video_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MAX_VIDEO_FRAMES", 6)
    path = tmp_path / "clip.mp4"
    write_video(path, (96, 96), num_frames=6)
    assert media.read_video(path).shape == (6, 96, 96)
    write_video(path, (96, 96), num_frames=7)
    with pytest.raises(InputError, match="clip.mp4: video of more than 6 frames, expected a short clip"):
        media.read_video(path)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"rate": 8000}, "8000 Hz, 1 channel.s., 16 bit"),
        ({"channels": 2}, "16000 Hz, 2 channel.s., 16 bit"),
        ({"width": 1}, "16000 Hz, 1 channel.s., 8 bit"),
        ({"width": 4}, "16000 Hz, 1 channel.s., 32 bit"),
    ],
)
def test_wav_of_another_format_is_refused(tmp_path, wrong, found):
    path = tmp_path / "clip.wav"
    write_wav(path, **wrong)
    with pytest.raises(InputError, match=f"clip.wav: audio is {found}, expected 16000 Hz, 1 channel, 16 bit"):
        media.read_audio(path)


def test_wav_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "clip.wav"
    with pytest.raises(InputError, match="clip.wav: no such file, expected a wav file"):
        media.read_audio(path)
    write_wav(path, samples=0)
    with pytest.raises(InputError, match="clip.wav: the wav file has no samples"):
        media.read_audio(path)
    write_wav(path, samples=100)
    whole = path.read_bytes()
    path.write_bytes(whole[:-61])
    with pytest.raises(InputError, match="clip.wav: truncated wav file, 69 samples where its header says 100"):
        media.read_audio(path)
    for cut in (1, 2, 61, 200):
        path.write_bytes(whole[:-cut])
        with pytest.raises(InputError, match="clip.wav: truncated wav file, its header says 100 samples"):
            media.check_audio(path)
    for more in (b"", b"LIST\4\0\0\0none"):
        path.write_bytes(whole + more)
        media.check_audio(path)
    float_format = whole[:20] + b"\x03\0" + whole[22:]
    for content in (b"", b"not a wav", whole[:30], float_format):
        path.write_bytes(content)
        with pytest.raises(InputError, match="clip.wav: not a readable PCM wav file"):
            media.read_audio(path)


def test_crop_and_normalize_make_the_encoder_input():
    frames = np.random.default_rng(0).integers(0, 256, (3, 96, 96), dtype=np.uint8)
    np.testing.assert_array_equal(media.crop(frames, 2, 7, flip=False), frames[:, 2:90, 7:95])
    np.testing.assert_array_equal(media.crop(frames, 8, 0, flip=True), frames[:, 8:96, 87::-1])
    middle = frames[:, 4:92, 4:92]
    np.testing.assert_array_equal(media.video_input(frames), ((middle / 255 - 0.421) / 0.165).astype(np.float32))
    np.testing.assert_array_equal(media.normalize(middle[:1, :5]), media.video_input(frames)[:1, :5])


def test_layer_norm_equals_pytorch_s():
    features = (np.random.default_rng(0).normal(size=(7, 104)) * 5 - 12).astype(np.float32)
    features[3], features[5] = 0, np.float32(-36.04)
    found = media.layer_norm(features)
    assert found.dtype == np.float32 and not found[3].any()
    np.testing.assert_allclose(found, torch.nn.functional.layer_norm(torch.from_numpy(features), (104,)), atol=1e-6)


def test_bytes_and_threads_decode_to_what_opencv_reads_from_the_file():
    """Twenty times each, by four threads at once."""
    expected, contents = [], []
    for utterance in UTTERANCES:
        capture = cv2.VideoCapture(str(MEDIA / f"{utterance}.mp4"))
        pictures = iter(capture.read, (False, None))
        expected.append(np.stack([cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for _, picture in pictures]))
        contents.append((MEDIA / f"{utterance}.mp4").read_bytes())
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(media.decode_video, contents * 20, UTTERANCES * 20))
    for frames, wanted in zip(found, expected * 20, strict=True):
        np.testing.assert_array_equal(frames, wanted)
    with pytest.raises(InputError, match="^record 7: not a readable video file"):
        media.decode_video(b"not a video", "record 7")
