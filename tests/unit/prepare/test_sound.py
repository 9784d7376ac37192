"""The sound of recordings, against SciPy: which track is read, how channels are mixed."""

from fractions import Fraction

import av
import numpy as np
import pytest
import scipy.signal
from real_videos import SPEECH, write_wav
from small_recordings import NOISE, numbered, refused

from viavsp_jax.prepare.recordings.recording import read_recording


def test_other_sound_is_resampled_and_mixed(tmp_path):
    left, right = np.random.default_rng(1).normal(0, 4000, (2, 48_000))
    low = scipy.signal.firwin(401, 5000, fs=48_000)
    stereo = np.stack([np.convolve(left, low, "same"), np.convolve(right, low, "same")], 1).astype(np.int16)
    got = read_recording(write_wav(tmp_path / "stereo.wav", stereo, 48_000)).samples
    expected = scipy.signal.resample_poly(stereo.mean(1), 1, 3)
    assert abs(len(got) - len(expected)) <= 1
    inner = slice(100, 15_900)
    assert np.abs(got[inner] - expected[inner]).max() < 8 and expected.std() > 500
    speech = read_recording(SPEECH)  # AAC, 24 kHz
    with av.open(str(SPEECH)) as container:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    expected = 32_768 * scipy.signal.resample_poly(decoded, 2, 3)
    count = min(len(expected), len(speech.samples))
    assert np.corrcoef(speech.samples[:count], expected[:count])[0, 1] > 0.999


def write_tracks(path, tracks, pictures=None, codec="pcm_s16le"):
    """Writes sound tracks int16[n] or int16[n, 2], 16 kHz, all of them default ones, and pictures if there are any."""
    with av.open(str(path), "w") as container:
        if pictures is not None:
            video = container.add_stream("ffv1", rate=25)
            video.height, video.width, video.pix_fmt = *pictures[0].shape[:2], "bgr0"
        layouts = ["mono" if samples.ndim == 1 else "stereo" for samples in tracks]
        streams = [container.add_stream(codec, rate=16_000, layout=layout) for layout in layouts]
        for stream in streams:
            stream.disposition = av.stream.Disposition.default
        for number, picture in enumerate(pictures or ()):
            frame = av.VideoFrame.from_ndarray(picture, "bgr24").reformat(format="bgr0")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        for stream, samples, layout in zip(streams, tracks, layouts, strict=True):
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", layout)
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def test_the_track_is_used_that_can_be_decoded(tmp_path, caplog):
    """Phones write AAC and, better and a default track, too, APAC, for which FFmpeg has no decoder."""
    with av.open(str(tmp_path / "phone.mov"), "w") as container:
        videos = [container.add_stream(codec, rate=25) for codec in ("mpeg4", "mjpeg")]
        sounds = [container.add_stream(codec, rate=16_000, layout="mono") for codec in ("pcm_s16le", "alac")]
        for stream in (*videos, *sounds):
            stream.disposition = av.stream.Disposition.default
        for stream, form, width in zip(videos, ("yuv420p", "yuvj420p"), (48, 96), strict=True):
            stream.height, stream.width, stream.pix_fmt = 32, width, form
        for stream, count in zip(videos, (1, 9), strict=True):
            for number in range(count):
                noise = np.random.default_rng(number).integers(0, 255, (32, stream.width), np.uint8)
                frame = av.VideoFrame.from_ndarray(noise, "gray").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for stream in sounds:
            frame = av.AudioFrame.from_ndarray(NOISE[None], "s16" if stream is sounds[0] else "s16p", "mono")
            frame.sample_rate, frame.pts = 16_000, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
    path = tmp_path / "phone.mov"
    assert read_recording(path).size == (96, 32)
    path.write_bytes(path.read_bytes().replace(b"alac", b"apac").replace(b"jpeg", b"zzz2"))
    recording = read_recording(path)
    assert recording.size == (48, 32) and len(list(recording.frames())) == 1
    np.testing.assert_array_equal(recording.samples, NOISE)
    path.write_bytes(path.read_bytes().replace(b"sowt", b"zzz1"))
    assert not caplog.text
    assert read_recording(path).samples is None
    assert "phone.mov: there is no decoder for its sound" in caplog.text
    path.write_bytes(path.read_bytes().replace(b"mp4v", b"zzz3").replace(b"esds", b"free"))
    assert "has pictures and sound of kinds that there is no decoder for" in refused(path)


def test_a_silent_track_counts_as_none(tmp_path, caplog):
    silence, dither = NOISE * 0, np.sign(NOISE)
    path = write_tracks(tmp_path / "two.mkv", [silence, dither, NOISE])
    np.testing.assert_array_equal(read_recording(path).samples, NOISE)
    assert "two.mkv: sound track 3 is used, those before it are silent" in caplog.text
    path = write_tracks(tmp_path / "lips.mkv", [silence], numbered(3))
    recording = read_recording(path)
    assert recording.samples is None and recording.size == (48, 32) and len(list(recording.frames())) == 3
    alone = read_recording(write_wav(tmp_path / "silent.wav", silence))  # is all there is
    assert alone.samples is not None and not alone.samples.any()
    # A word in an hour of silence is heard.
    quiet = np.zeros(160_000, np.int16)
    quiet[80_000:80_640] = 30
    np.testing.assert_array_equal(read_recording(write_wav(tmp_path / "quiet.wav", quiet)).samples, quiet)


def test_the_track_that_is_asked_for(tmp_path):
    path = write_tracks(tmp_path / "three.mkv", [NOISE, NOISE // 2, 0 * NOISE], numbered(3))
    for number, expected in ((None, NOISE), (1, NOISE), (2, NOISE // 2)):
        np.testing.assert_array_equal(read_recording(path, audio_track=number).samples, expected)
    assert read_recording(path, audio_track=3).samples is None
    for number in (0, 4):
        message = f"has 3 sound tracks, expected one of them as audio_track, not {number}"
        assert message in refused(path, audio_track=number)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("other", [-1, -0.98])
def test_channels_that_cancel_each_other_are_not_mixed(tmp_path, rate, other):
    voice = scipy.signal.resample_poly(NOISE / 4, rate // 16_000, 1)
    half = len(voice) // 2
    weights = np.where(np.arange(len(voice)) < half, 1, other)  # only from the middle on
    stereo = np.stack([voice, weights * voice], 1).astype(np.int16)
    found = read_recording(write_wav(tmp_path / "a.wav", stereo, rate)).samples.astype(float)
    expected = scipy.signal.resample_poly(voice, 1, rate // 16_000)
    parts = [np.arange(start, start + 4000) for start in (2000, 12_000, 26_000, 35_000)]
    for part in parts:
        gain = found[part] @ expected[part] / (expected[part] @ expected[part])
        assert gain == pytest.approx(1, abs=0.02) and np.corrcoef(found[part], expected[part])[0, 1] > 0.99


def test_one_silent_channel_and_rooms_are_mixed_as_by_ffmpeg(tmp_path):
    left = np.stack([NOISE, 0 * NOISE], 1)
    np.testing.assert_allclose(read_recording(write_wav(tmp_path / "left.wav", left)).samples, NOISE / 2, atol=1)
    six = np.zeros((len(NOISE), 6), np.int16)
    six[:, 2] = NOISE  # the centre of 5.1
    found = read_recording(write_wav(tmp_path / "six.wav", six)).samples.astype(float)
    assert np.corrcoef(found, NOISE)[0, 1] > 0.999 and found.std() == pytest.approx(0.29 * NOISE.std(), rel=0.02)
    eight = np.zeros((len(NOISE), 8), np.int16)
    eight[:, 3] = NOISE  # of the deep tones, which no mix has
    np.testing.assert_array_equal(read_recording(write_wav(tmp_path / "eight.wav", eight)).samples, NOISE)
