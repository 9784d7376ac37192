"""Media features against arrays recorded from the reference, and one clear error for each bad file."""

import io
import struct
import wave
from concurrent.futures import ThreadPoolExecutor

import av
import cv2
import numpy as np
import pytest
import torch
from places import GOLDEN
from small_crops import PICTURES, write_crops

from viavsp_jax.data import media
from viavsp_jax.data.features import FRAME_RATE, audio_features, layer_norm, normalize, video_input
from viavsp_jax.runtime.errors import InputError

MEDIA = GOLDEN / "media"
UTTERANCES = sorted(path.stem for path in MEDIA.glob("utt*.npz"))


def test_recorded_audio_is_once_too_short_and_once_too_long():
    differences = [
        len(data["stacked"]) - len(data["frames"]) for data in (np.load(MEDIA / f"{u}.npz") for u in UTTERANCES)
    ]
    assert min(differences) < 0 < max(differences)


def test_speech_shorter_than_one_window():
    features = audio_features(np.array([1000, -1000, 500], np.int16), num_frames=2)
    assert features.shape == (2, 104)
    assert np.isfinite(features).all() and not features[1].any()


@pytest.mark.parametrize("surplus", [-2000, -640, 0, 333, 5000])
def test_samples_of_minus_1_to_1_are_cut_or_padded_before_the_filterbank(surplus):
    """Else the features are the same, but for the last frame, whose fourth part is zeros."""
    frames, rng = 9, np.random.default_rng(0)
    samples = (rng.normal(0, 3000, frames * 640 + surplus)).astype(np.int16)
    found, int16 = audio_features(samples, frames, "float"), audio_features(samples, frames)
    assert found.shape == int16.shape == (frames, 104) and found.dtype == np.float32
    whole = min(frames, len(samples) // 640) - 1  # before what is cut or padded
    np.testing.assert_allclose(found[:whole], int16[:whole], atol=5e-6)
    assert np.abs(found[-1] - int16[-1]).max() > 1
    assert found[-1, -1] > 0 and np.ptp(found[-1, -26:]) == 0  # zeros among logarithms of small numbers
    padded = np.zeros(frames * 640, np.int16)
    padded[: len(samples)] = samples[: len(padded)]
    np.testing.assert_array_equal(found, audio_features(padded, frames, "float"))


def test_another_waveform_is_an_error():
    with pytest.raises(ValueError, match="the waveform is 'flaot', expected int16 or float"):
        audio_features(np.zeros(640, np.int16), 1, "flaot")


def write_video(path, size, num_frames=3):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FRAME_RATE, size)
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


INTERLACED = [
    ("libx264", {"x264-params": "tff=1"}),
    ("libx264", {"x264-params": "fake-interlaced=1"}),
    ("mpeg2video", {"flags": "+ildct+ilme"}),
]


@pytest.mark.parametrize(("codec", "options"), [*INTERLACED, ("libsvtav1", {"svtav1-params": "lp=1"})])
def test_what_opencv_cannot_read_is_read(tmp_path, codec, options):
    """Of interlaced pictures it gives the first one again and again, of AV1 none."""
    found = media.read_video(write_crops(tmp_path / "clip.mp4", codec, options))
    distances = np.abs(found[:, None].astype(int) - PICTURES[None]).mean((2, 3))
    assert found.shape == PICTURES.shape and list(distances.argmin(1)) == list(range(len(PICTURES)))
    assert distances.diagonal().max() < 6


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("clip.mp4", "libx264", "yuv420p"), ("clip.mp4", "libx264", "yuvj420p"), ("clip.mp4", "libx264", "yuv444p"),
        ("clip.mp4", "libx264", "gray"), ("clip.mkv", "ffv1", "bgr0"), ("clip.mkv", "libvpx-vp9", "yuv420p"),
        ("clip.avi", "mjpeg", "yuvj420p"), ("clip.mov", "png", "rgba"),
    ],
)  # fmt: skip
def test_what_opencv_reads_comes_out_bit_for_bit(tmp_path, name, codec, form):
    path = write_crops(tmp_path / name, codec, form=form, rotation=90 if codec == "libx264" else 0)
    capture = cv2.VideoCapture(str(path))
    expected = [cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for _, picture in iter(capture.read, (False, None))]
    np.testing.assert_array_equal(media.read_video(path), expected)


def test_damaged_videos_are_refused_but_records_end_before_the_damage(tmp_path):
    path = write_crops(tmp_path / "clip.mp4", "mpeg4")
    whole, expected = path.read_bytes(), media.read_video(path)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    start, size = packets[7]
    path.write_bytes(whole[:start] + bytes(size) + whole[start + size :])
    with pytest.raises(InputError, match="clip.mp4: damaged, frame 7 cannot be decoded .*, expected a whole video"):
        media.read_video(path)
    np.testing.assert_array_equal(media.decode_video(path.read_bytes(), "record 7"), expected[:7])
    path.write_bytes(whole[: start + size // 2] + bytes(size // 4) + whole[start + size // 2 + size // 4 :])
    with pytest.raises(InputError, match="clip.mp4: damaged, a part of frame 7 is lost, expected a whole video"):
        media.read_video(path)
    assert len(media.decode_video(path.read_bytes(), "record 7")) == len(PICTURES)


def test_a_video_without_a_decoder_says_so(tmp_path):
    path = write_crops(tmp_path / "clip.mp4", "libx264")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz2"))
    with pytest.raises(InputError, match="clip.mp4: its video is of a kind that FFmpeg has no decoder for here, expec"):
        media.read_video(path)


def test_pictures_of_another_size_in_the_middle_are_refused(tmp_path):
    """The header says 96x96."""
    small = np.zeros((64, 64, 3), np.uint8)
    path = write_crops(tmp_path / "clip.mov", "png", form="rgb24", change={5: small})
    with pytest.raises(InputError, match="clip.mov: video is 64x64, expected a 96x96 mouth crop"):
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
        with pytest.raises(InputError, match=r"clip.wav: truncated wav file, \d+ samples where its header says 100"):
            media.check_audio(path)
    for more in (b"", b"LIST\4\0\0\0none"):
        path.write_bytes(whole + more)
        media.check_audio(path)
    float_format = whole[:20] + b"\x03\0" + whole[22:]
    for content in (b"", b"not a wav", whole[:30], float_format):
        path.write_bytes(content)
        with pytest.raises(InputError, match="clip.wav: not a readable PCM wav file"):
            media.read_audio(path)


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def wav_bytes(samples, coding=1, more=b"", before=b"", size=None, riff=None, name=b"RIFF", bits=16):
    """A wav file by hand; sizes as they are, if not given."""
    data = samples.astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", coding, 1, 16_000, 2000 * bits, bits // 8, bits) + more
    body = b"WAVE" + chunk(b"fmt ", form) + before + b"data" + struct.pack("<I", len(data) if size is None else size)
    return name + struct.pack("<I", len(body + data) if riff is None else riff) + body + data


SAMPLES = np.random.default_rng(1).integers(-9000, 9000, 401).astype(np.int16)
PCM = struct.pack("<HHIH", 22, 16, 4, 1) + bytes.fromhex("000000001000800000aa00389b71")
DS64 = chunk(b"ds64", struct.pack("<QQQI", 0, 802, 401, 0))


@pytest.mark.parametrize(
    "content",
    [
        wav_bytes(SAMPLES, size=0xFFFFFFFF, riff=0xFFFFFFFF),  # FFmpeg, to a pipe
        wav_bytes(SAMPLES, size=0x7FFFF000, riff=0x7FFFF024),  # SoX
        wav_bytes(SAMPLES, size=0, riff=0),
        wav_bytes(SAMPLES, size=0, riff=36),  # as a header is at first, by a program that was stopped
        wav_bytes(SAMPLES, coding=0xFFFE, more=PCM),
        wav_bytes(SAMPLES, coding=0xFFFE, more=PCM, size=0xFFFFFFFF, riff=0xFFFFFFFF),
        wav_bytes(SAMPLES, before=chunk(b"LIST", b"INFO odd") + chunk(b"JUNK", bytes(27)) + chunk(b"bext", bytes(602))),
        wav_bytes(SAMPLES, riff=9),
        wav_bytes(SAMPLES, before=DS64, size=0xFFFFFFFF, riff=0xFFFFFFFF, name=b"RF64"),
        wav_bytes(SAMPLES, more=b"\0\0") + chunk(b"LIST", b"afterwards"),
    ],
)
def test_whole_wav_files_of_all_headers_are_read(tmp_path, content):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    media.check_audio(path)
    np.testing.assert_array_equal(media.read_audio(path), SAMPLES)


def test_what_ffmpeg_writes_to_a_pipe_is_read(tmp_path):
    class Pipe(io.RawIOBase):
        content = b""

        def writable(self):
            return True

        def write(self, data):
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with av.open(pipe, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(SAMPLES[None], "s16", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
    assert pipe.content[4:8] == b"\xff" * 4
    (tmp_path / "clip.wav").write_bytes(pipe.content)
    np.testing.assert_array_equal(media.read_audio(tmp_path / "clip.wav"), SAMPLES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (wav_bytes(SAMPLES, before=DS64, size=0xFFFFFFFF, name=b"RF64")[:-100], "truncated wav file, 351 samples"),
        (wav_bytes(SAMPLES, coding=0xFFFE, more=PCM)[:-1], "truncated wav file, 400 samples where its header says 401"),
        (wav_bytes(SAMPLES[:0], size=0xFFFFFFFF, riff=0xFFFFFFFF), "has no samples"),
        (wav_bytes(SAMPLES[:0], riff=48) + chunk(b"LIST", b"none"), "has no samples"),
        (wav_bytes(SAMPLES, name=b"RIFX"), r"not a readable PCM wav file \(its numbers are big-endian, RIFX"),
        (wav_bytes(SAMPLES, coding=6, bits=8), "coded as A-law, expected PCM"),
        (wav_bytes(SAMPLES, coding=0x1234), "coded as 0x1234, expected PCM"),
        (wav_bytes(SAMPLES, coding=0xFFFE, more=PCM.replace(b"\1\0\0\0", b"\3\0\0\0")), "coded as floating point"),
        (wav_bytes(SAMPLES, bits=24), "16000 Hz, 1 channel.s., 24 bit, expected"),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", bytes(20)), "no format before the samples"),
        (b"RIFF\0\0\0\0WAVE" + 2000 * chunk(b"JUNK", b""), "no samples after 1000 chunks"),
        (wav_bytes(SAMPLES)[:40], "unexpected end of file"),
    ],
)
def test_other_wav_files_are_refused_with_what_was_found(tmp_path, content, said):
    (tmp_path / "clip.wav").write_bytes(content)
    for read in (media.read_audio, media.check_audio):
        with pytest.raises(InputError, match=f"clip.wav: .*{said}"):
            read(tmp_path / "clip.wav")


def test_crop_and_normalize_make_the_encoder_input():
    frames = np.random.default_rng(0).integers(0, 256, (3, 96, 96), dtype=np.uint8)
    np.testing.assert_array_equal(media.crop(frames, 2, 7, flip=False), frames[:, 2:90, 7:95])
    np.testing.assert_array_equal(media.crop(frames, 8, 0, flip=True), frames[:, 8:96, 87::-1])
    middle = frames[:, 4:92, 4:92]
    np.testing.assert_array_equal(video_input(frames), ((middle / 255 - 0.421) / 0.165).astype(np.float32))
    np.testing.assert_array_equal(normalize(middle[:1, :5]), video_input(frames)[:1, :5])


def test_layer_norm_equals_pytorch_s():
    features = (np.random.default_rng(0).normal(size=(7, 104)) * 5 - 12).astype(np.float32)
    features[3], features[5] = 0, np.float32(-36.04)
    found = layer_norm(features)
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
