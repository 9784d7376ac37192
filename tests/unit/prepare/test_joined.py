"""Files that were made by appending others: all pictures and all sound, in step."""

import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest

from viavsp_jax.prepare.recordings.recording import read_recording

RATE, PICTURE = 16_000, 640  # samples of a second and of a picture
TS = ("libx264", "aac", {"x264-params": "bframes=3:log-level=none"})
MPEG2 = ("mpeg2video", "mp2", {"bf": "2"})


def part(
    path: pathlib.Path, codecs, seconds: float = 3, size: tuple[int, int] = (96, 96), rate: int = RATE, **options: str
) -> bytes:
    """A file with a flash and a click at half past each second."""
    video_codec, audio_codec, coding = codecs
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream(video_codec, rate=25, options=coding)
        (video.width, video.height), video.pix_fmt, video.bit_rate = size, "yuv420p", 1_000_000
        audio = container.add_stream(audio_codec, rate=rate, layout="mono")
        samples = np.random.default_rng(0).integers(-300, 300, round(rate * seconds)).astype(np.int16)
        for number in range(round(25 * seconds)):
            grey = np.full((size[1] * 3 // 2, size[0]), 128, np.uint8)
            grey[: size[1]] = 235 if number % 25 == 12 else 40 + number % 50
            frame = av.VideoFrame.from_ndarray(grey, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
            if number % 25 == 12:
                beep = 20_000 * np.sign(np.sin(np.arange(rate // 25) * 0.6))
                samples[number * rate // 25 :][: rate // 25] = beep[: len(samples) - number * rate // 25]
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path.read_bytes()


def flashes_and_clicks(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Seconds of both, and how long the whole is."""
    recording = read_recording(path)
    bright = np.array([frame.mean() for frame in recording.frames()]) > 150
    loud = np.flatnonzero(np.abs(recording.samples.astype(int)) > 12_000)
    clicks = loud[np.diff(loud, prepend=-RATE) > RATE // 4] / RATE
    assert abs(len(bright) / 25 - len(recording.samples) / RATE) < 0.15
    return np.flatnonzero(bright & ~np.roll(bright, 1)) / 25, clicks, recording.seconds


@pytest.mark.parametrize(("suffix", "codecs", "count"), [
    (".ts", TS, 4), (".ts", MPEG2, 3), (".m2ts", TS, 2), (".mpg", MPEG2, 4), (".vob", MPEG2, 2),
    (".mkv", ("mpeg4", "libopus", {}), 2),
])  # fmt: skip
def test_files_appended_to_each_other_are_read_to_the_end(tmp_path, suffix, codecs, count):
    """Of different lengths: the first piece must not be followed by one that begins where another file did."""
    path = tmp_path / f"all{suffix}"
    parts = [part(tmp_path / f"{number}{suffix}", codecs, 2.72 + 0.28 * (number % 2)) for number in range(count)]
    path.write_bytes(b"".join(parts))
    flashes, clicks, seconds = flashes_and_clicks(path)
    assert len(flashes) == len(clicks) == 3 * count and np.abs(flashes - clicks).max() < 0.07
    # A frame of sound at each end, and what a decoder adds.
    assert sum(2.72 + 0.28 * (number % 2) for number in range(count)) == pytest.approx(seconds, abs=0.13 * count)
    assert np.diff(flashes).max() < 1.15


@pytest.mark.parametrize("starts", [[0, 100], [100, 0], [95_441.5], [95_441.5, 0, 95_441.5], [50, 20, 90]])
def test_timestamps_leap_start_over_or_overflow(tmp_path, starts):
    """They have 33 bits at 90 kHz, 95443.7 s."""
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(part(tmp_path / "a.ts", TS, output_ts_offset=str(start)) for start in starts))
    flashes, clicks, _ = flashes_and_clicks(path)
    assert len(flashes) == len(clicks) == 3 * len(starts) and np.abs(flashes - clicks).max() < 0.07
    assert np.diff(flashes).max() < 1.15


def test_a_short_gap_stays_one(tmp_path):
    path = tmp_path / "all.ts"
    path.write_bytes(part(tmp_path / "a.ts", TS) + part(tmp_path / "b.ts", TS, output_ts_offset="5"))
    flashes, clicks, _ = flashes_and_clicks(path)
    assert np.abs(flashes - clicks).max() < 0.07 and flashes[3] - flashes[2] == pytest.approx(2.92, abs=0.08)


def test_parts_of_another_form(tmp_path):
    """Another shape, rate and numbers of the tracks. A picture keeps its shape: a face must not become broad."""
    path = tmp_path / "all.ts"
    other = part(tmp_path / "b.ts", TS, size=(128, 64), rate=48_000, mpegts_start_pid="500")
    path.write_bytes(part(tmp_path / "a.ts", TS) + other)
    recording = read_recording(path)
    frames = list(recording.frames())
    assert recording.size == (96, 96) and {frame.shape for frame in frames} == {(96, 96, 3)}
    assert frames[30].min() > 20 and not frames[-30][:24].any() and frames[-30][24:72].min() > 20
    clicks = np.flatnonzero(np.abs(recording.samples.astype(int)) > 12_000) / RATE
    assert clicks[0] == pytest.approx(0.56, abs=0.05) and clicks[-1] == pytest.approx(5.66, abs=0.05)


def test_chained_ogg_is_one_recording(tmp_path):
    with av.open(str(tmp_path / "a.ogg"), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        samples = np.random.default_rng(0).integers(-4000, 4000, 3 * RATE).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "all.ogg").write_bytes(3 * (tmp_path / "a.ogg").read_bytes())
    np.testing.assert_array_equal(read_recording(tmp_path / "all.ogg").samples, np.tile(samples, 3))
