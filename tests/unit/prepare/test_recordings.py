"""Recordings against FFmpeg's own filters, OpenCV and SciPy."""

import http.server
import logging
import threading
import wave
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.filter import Graph
from real_videos import CARTOON, PHONE, SPEECH, write_video, write_wav
from small_recordings import NOISE, numbered, refused

from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.runtime.errors import InputError


def numbers(path) -> list[int]:
    return [int(frame[0, 0, 0]) // 2 for frame in read_recording(path).frames()]


def filtered(path) -> list[np.ndarray]:
    """The pictures as FFmpeg's fps filter gives them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = Graph()
        source, sink = graph.add_buffer(template=stream), graph.add("buffersink")
        rate = graph.add("fps", "fps=25")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        frames = []
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            while True:
                try:
                    frames.append(graph.pull().to_ndarray(format="bgr24"))
                except (av.BlockingIOError, av.EOFError):
                    break
        return frames


def test_speech_as_it_should_be_comes_out_bit_for_bit(tmp_path):
    recording = read_recording(write_wav(tmp_path / "speech.wav", NOISE))
    assert recording.samples.dtype == np.int16 and recording.size is None
    np.testing.assert_array_equal(recording.samples, NOISE)
    video = write_video(tmp_path / "speech.mkv", numbered(60), samples=NOISE)
    np.testing.assert_array_equal(read_recording(video).samples, NOISE)


@pytest.mark.parametrize("rate", [12, 24, 25, 30, 50, 60])
def test_steady_rates_become_25_as_by_ffmpeg(rate, tmp_path):
    path = write_video(tmp_path / "video.mkv", numbered(rate * 2), rate=rate)
    got = numbers(path)
    assert len(got) == 50
    assert got == [int(frame[0, 0, 0]) // 2 for frame in filtered(path)][:50]
    # By hand: what is shown in the middle of each 1/25 s.
    middles = [Fraction(2 * index + 1, 50) for index in range(50)]
    assert (
        np.abs(np.array(got) / rate - np.array(middles, float)).max() <= 1 / min(rate, 25) + 0.001
    )  # as timestamps are rounded


@pytest.mark.parametrize("path", [SPEECH, PHONE])
def test_real_videos_become_25_as_by_ffmpeg(path):
    got, expected = list(read_recording(path).frames()), filtered(path)
    assert abs(len(got) - len(expected)) <= 1
    for frame, other in zip(got, expected, strict=False):
        other = cv2.resize(other, frame.shape[1::-1]) if path == PHONE else other  # its pixels are not square
        assert np.abs(frame.astype(int) - other).mean() < (3 if path == PHONE else 0.01)
    assert not got[0].flags.writeable


def test_a_varying_rate_follows_the_timestamps(tmp_path):
    times = np.cumsum(np.random.default_rng(2).integers(5, 200, 60)) / 1000
    times -= times[0]
    path = write_video(tmp_path / "varying.mkv", numbered(60), times=times)
    got = numbers(path)
    middles = (np.arange(len(got)) + 0.5) / 25
    assert got == [int(np.flatnonzero(np.rint(1000 * times) < round(1000 * middle))[-1]) for middle in middles]
    assert abs(len(got) / 25 - times[-1]) <= 0.06 and len(set(got)) < 60  # some are shown too briefly


@pytest.mark.parametrize(("video_start", "audio_start"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (1.2, 0.9)])
def test_sound_and_picture_stay_in_step(video_start, audio_start, tmp_path):
    """A flash and a click at the same instant, 2 s into the file's own time."""
    times = video_start + np.arange(90) / 30
    pictures = [np.full((32, 48, 3), 255 * (-0.001 < time - 2 < 0.05), np.uint8) for time in times]
    samples = np.zeros(16_000 * 3, np.int16)
    samples[round((2 - audio_start) * 16_000) :][:400] = 20_000
    path = write_video(tmp_path / "flash.mkv", pictures, times=times, samples=samples, audio_times=[audio_start])
    recording = read_recording(path)
    flash = np.argmax([frame.mean() for frame in recording.frames()])
    click = np.argmax(recording.samples > 0)
    start = min(video_start, audio_start)
    assert click == pytest.approx((2 - start) * 16_000, abs=16)  # times are in milliseconds there
    assert flash == pytest.approx(click / 640, abs=1)


def test_a_gap_in_the_sound_becomes_silence(tmp_path):
    path = write_video(tmp_path / "gap.mkv", numbered(50), samples=NOISE, audio_times=[0, 3])
    samples = read_recording(path).samples
    np.testing.assert_array_equal(samples[:20_000], NOISE[:20_000])
    assert not samples[20_000:48_000].any()
    np.testing.assert_array_equal(samples[48_000:], NOISE[20_000:])


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_pictures_are_upright(rotation, tmp_path):
    picture = np.random.default_rng(3).integers(0, 255, (4, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    path = write_video(tmp_path / "turned.mp4", [picture] * 5, rotation=rotation, codec="libx264")
    recording = read_recording(path)
    frame = next(recording.frames())
    _, expected = cv2.VideoCapture(str(path)).read()  # OpenCV turns them, too
    assert recording.size == frame.shape[1::-1] == ((96, 64) if rotation == 180 else (64, 96))
    np.testing.assert_array_equal(frame, expected)


def test_oblong_pixels_become_square():
    assert read_recording(PHONE).size == (round(176 * 128 / 117), 144)


def test_the_cover_of_an_album_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.flac"), "w") as container:
        sound = container.add_stream("flac", rate=16_000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 48, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(NOISE[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1)[0], format="bgr24")))
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with av.open(str(tmp_path / "song.flac")) as container:
        assert container.streams.video
    recording = read_recording(tmp_path / "song.flac")
    assert recording.size is None
    np.testing.assert_array_equal(recording.samples, NOISE)


@pytest.mark.parametrize(("times", "shown"), [
    (np.arange(25) / 25, [True] * 25),
    (1 + np.arange(25) / 25, [False] * 25 + [True] * 25),
    (np.concatenate([np.arange(25) / 25, 4 + np.arange(25) / 25]), [True] * 50 + [False] * 50 + [True] * 25),
    (np.arange(3) / 2, [True] * 26),  # slow, but steady
])  # fmt: skip
def test_what_is_shown_is_told_from_what_is_held(times, shown, tmp_path):
    path = write_video(tmp_path / "a.mkv", numbered(len(times)), times=times, samples=NOISE)
    found = list(read_recording(path).shown_frames())
    assert [one for _, one in found] == shown
    assert [int(frame[0, 0, 0]) // 2 for frame, _ in found] == numbers(path)


def test_files_that_cannot_be_used_are_named(tmp_path):
    assert "no such file" in refused(tmp_path / "missing.mp4")
    assert "no such file" in refused(tmp_path)
    for name, content in {
        "empty.mp4": b"",
        "text.mp4": b"these are words\n" * 1000,
        "no_index.mp4": CARTOON.read_bytes()[:100_000],  # its index is at the end
        "picture.mp4": cv2.imencode(".png", numbered(9)[8])[1].tobytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "expected a video or audio file" in refused(tmp_path / name)
    assert "no sample" in refused(write_wav(tmp_path / "empty.wav", NOISE[:0]))
    # The index promises pictures, but there are only zeros.
    zeroed = bytearray(SPEECH.read_bytes())
    start = zeroed.index(b"mdat")
    size = int.from_bytes(zeroed[start - 4 : start], "big")
    zeroed[start + 4 : start + size - 4] = bytes(size - 8)
    (tmp_path / "zeroed.mp4").write_bytes(zeroed)
    assert "no picture of its video could be decoded" in refused(tmp_path / "zeroed.mp4")


def test_of_a_truncated_file_the_beginning_is_used(tmp_path, caplog):
    pictures = list(np.random.default_rng(4).integers(0, 255, (50, 32, 48, 3), np.uint8))
    whole = write_video(tmp_path / "whole.mkv", pictures)
    (tmp_path / "half.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    got = list(read_recording(tmp_path / "half.mkv").frames())
    assert 20 <= len(got) <= 26
    np.testing.assert_array_equal(got[:20], pictures[:20])
    samples = read_recording(write_wav(tmp_path / "whole.wav", NOISE)).samples
    (tmp_path / "half.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:40_044])
    np.testing.assert_array_equal(read_recording(tmp_path / "half.wav").samples, samples[:20_000])
    # Damage in the middle: what is around it is still there.
    damaged = bytearray(SPEECH.read_bytes())
    damaged[60_000:61_000] = bytes(1000)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert len(list(read_recording(tmp_path / "damaged.mp4").frames())) == 219
    assert f"{tmp_path}/damaged.mp4: damaged" in caplog.text


def test_timestamps_that_leap_are_refused(tmp_path):
    path = write_video(tmp_path / "leap.mkv", numbered(3), times=[0, 0.04, 50_000])
    assert "leap" in refused(path)


@pytest.fixture
def server():
    """A web server that notes what it is asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_files_that_name_other_files_are_refused(tmp_path, server):
    address, asked = server
    write_video(tmp_path / "secret.mkv", numbered(5))
    write_video(tmp_path / "secret.ts", numbered(5), codec="mpeg2video")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n"
    attacks = {
        "list.mp4": "ffconcat version 1.0\nfile secret.mkv\n",
        "local.m3u8": playlist.format("secret.ts"),
        "remote.m3u8": playlist.format(f"{address}/secret.ts"),
        "text.ans": "\x1b[31mred\x1b[0m\n" * 50,  # drawn as a video
    }
    opened = 0
    for name, content in attacks.items():
        (tmp_path / name).write_text(content)
        try:
            with (tmp_path / name).open("rb") as file, av.open(file) as container:
                opened += any(True for _ in container.decode(video=0))
        except av.FFmpegError:
            pass
    assert opened >= 2 and asked  # without precautions, FFmpeg does as it is told
    asked.clear()
    for name in attacks:
        assert "not a media file that can be read" in refused(tmp_path / name)
    for name in (f"{address}/a.mp4", f"concat:{tmp_path}/secret.mkv", f"file:{tmp_path}/secret.mkv"):
        assert "no such file" in refused(name)
    assert not asked


def test_pictures_are_read_as_they_are_needed(tmp_path):
    """The first comes without the others having been decoded."""
    path = write_video(tmp_path / "video.mkv", np.random.default_rng(5).integers(0, 255, (100, 48, 64, 3), np.uint8))
    content = path.read_bytes()
    frames = read_recording(path).frames()
    next(frames)
    path.write_bytes(content[: len(content) // 10])  # the same open file, cut short
    assert len(list(frames)) < 99


def test_wav_headers_agree(tmp_path):
    """What the corpus reader takes, this one takes alike."""
    path = write_wav(tmp_path / "speech.wav", NOISE)
    with wave.open(str(path), "rb") as file:
        assert file.getnframes() == len(read_recording(path).samples)


def test_one_that_is_too_long_is_refused_whatever_it_says(tmp_path):
    """By its own word at once; else while it is read. Browsers record without knowing how long it will be."""
    with pytest.raises(InputError, match=r"obama_speech\.mp4: is longer than 0\.1 minutes, expected at most so many"):
        read_recording(SPEECH, 6)
    assert read_recording(SPEECH, 9).samples is not None
    path = tmp_path / "a.webm"
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("vp8", rate=25)
        stream.width = stream.height = 64
        for _ in range(75):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    recording = read_recording(path, 3)
    assert recording.seconds is None and sum(1 for _ in recording.frames()) == 75
    recording = read_recording(path, 2)
    with pytest.raises(InputError, match=r"a\.webm: is longer than"):
        list(recording.frames())
    # Sound that goes on when the header has ended: a stream of AAC has none.
    with av.open(str(tmp_path / "a.aac"), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 160_000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match=r"a\.aac: is longer than"):
        read_recording(tmp_path / "a.aac", 5)
