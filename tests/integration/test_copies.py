"""Copies with subtitles: the file's own pictures at their own times, its own sound, text and box where they belong."""

from fractions import Fraction

import av
import cv2
import numpy as np
import odd_videos
import pytest
from odd_videos import scene, write
from real_videos import SPEECH
from spoken_words import transcript_of_words

from viavsp_jax.app import lettering, painter, pictures
from viavsp_jax.app.cues import Style
from viavsp_jax.app.recognizer import Hypothesis
from viavsp_jax.app.transcriber import Segment, Transcript
from viavsp_jax.prepare.recordings.mouth import MouthTrack
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.runtime.errors import InputError


def copied(path, *texts, boxes=None):
    """A copy; each text stays for a second, the boxes (x, y, side, angle) are those of each 1/25 s."""
    recording = read_recording(path)
    segments = []
    for first, text in zip(range(0, 25 * len(texts), 25), texts, strict=True):  # what the model hears overlaps
        start, end = max(0, first - 5), first + 30
        hypotheses = (Hypothesis(text, 0.0),)
        segments.append(Segment(start, end, hypotheses, np.int32([end - start]), "audio", (first, first + 25)))
    mouth = None
    if boxes is not None:
        found = np.arange(len(boxes)) < len(boxes) // 2
        mouth = MouthTrack(
            np.zeros((len(boxes), 96, 96), np.uint8), found, np.float32(boxes), np.ones(len(boxes), bool)
        )
    transcript = Transcript(tuple(segments), "audio", 25 * len(texts), mouth, recording.samples, recording, None)
    copy = path.with_name(f"{path.name}.copy.mp4")
    shares = []
    pictures.write_video(transcript, copy, shares.append)
    assert shares == sorted(set(shares)) and (not texts or 0.5 < shares[-1] <= 1)
    return copy


def text_in(picture):
    """How many pixels at the bottom are as white as letters."""
    return int((picture[len(picture) // 2 :].min(-1) > 215).sum())


@pytest.mark.parametrize(("ending", "rate"), [
    ("mp4", 3), ("mp4", 24), ("mkv", 25), ("mov", Fraction(30_000, 1001)), ("mp4", 60), ("avi", 15), ("ts", 50),
])  # fmt: skip
def test_pictures_keep_their_rate_and_look(ending, rate, tmp_path):
    path = write(tmp_path / f"a.{ending}", scene(30), rate, codec="mpeg4" if ending == "avi" else "libx264")
    (times, before), (copy_times, after) = map(odd_videos.pictures, (path, copied(path)))
    assert [time - copy_times[0] for time in copy_times] == [time - times[0] for time in times]
    assert np.abs(np.int16(before) - np.int16(after)).mean() < 2.5
    with av.open(str(tmp_path / f"a.{ending}.copy.mp4")) as container:
        assert container.streams.video[0].average_rate == rate


def test_pictures_keep_times_that_vary(tmp_path):
    times = np.round(np.cumsum(np.random.default_rng(0).integers(5, 300, 30)) / 1000, 3)
    times -= times[0]
    path = write(tmp_path / "a.mkv", scene(30), times=times, sound="aac", seconds=times[-1])
    found, _ = odd_videos.pictures(copied(path))
    np.testing.assert_allclose(np.array(found, float), times, atol=1e-6)


def test_a_picture_that_stays_is_shown_again_where_the_text_changes(tmp_path):
    path = write(tmp_path / "a.mkv", scene(3), times=[0, 0.3, 2.6])
    times, shown = odd_videos.pictures(copied(path, "trường", "", "ở"))
    assert [float(time) for time in times] == [0, 0.3, 1, 2, 2.6]
    assert [text_in(picture) > 5 for picture in shown] == [True, True, False, True, True]


WORDS = ("một", 0.4, 0.8, 0.9), ("hai", 0.8, 1.2, 0.2), ("ba", 1.6, 2.0, 0.9)


def with_words(path, style):
    """Times and pictures of a copy with WORDS."""
    copy = path.with_name("copy.mp4")
    pictures.write_video(transcript_of_words([0, 3, *WORDS], recording=read_recording(path)), copy, style=style)
    return odd_videos.pictures(copy)


def test_highlighted_and_doubtful_words_are_in_colour_while_they_are(tmp_path):
    path = write(tmp_path / "a.mp4", [np.zeros((540, 960, 3), np.uint8)] * 75)
    times, shown = with_words(path, Style(99, highlight_words=True, min_confidence=0.5))
    places = []
    for time, picture in zip(map(float, times), shown, strict=True):
        blue, green, red = np.moveaxis(picture.astype(int), -1, 0)
        yellow = np.argwhere((red > 180) & (green > 150) & (blue < 90))
        doubtful = np.argwhere((blue > 200) & (red < 170) & (red > 60))
        spoken = [word for word, start, end, _ in WORDS if start <= time < end]
        assert (len(yellow) > 20) == bool(spoken), time
        assert (len(doubtful) > 20) == (0.4 <= time < 2 and spoken != ["hai"]), time
        assert (picture.max() > 100) == (0.4 <= time < 2)
        places += [(spoken[0], round(yellow[:, 1].mean() / 10))] if spoken else []
    places = list(dict.fromkeys(places))
    assert [word for word, _ in places] == ["một", "hai", "ba"] and places == sorted(places, key=lambda one: one[1])


def test_words_change_while_a_picture_stays(tmp_path):
    path = write(tmp_path / "a.mkv", scene(2), times=[0, 2.6])
    times, _ = with_words(path, Style(highlight_words=True))
    assert [float(time) for time in times] == [0, 0.4, 0.8, 1.2, 1.6, 2, 2.6]
    times, _ = with_words(path, Style(max_words_per_line=2))
    assert [float(time) for time in times] == [0, 0.4, 1.2, 1.6, 2, 2.6]


def test_lines_of_subtitles_are_those_of_the_copy(tmp_path):
    path = write(tmp_path / "a.mp4", [np.zeros((540, 960, 3), np.uint8)] * 75)
    rows = []
    for width in (7, 99):
        _, shown = with_words(path, Style(width))
        bright = (shown[25].min(-1) > 200).any(1)
        rows.append(int(np.flatnonzero(bright)[0] < 540 - 60))
    assert rows == [1, 0]  # two lines, one line


@pytest.mark.parametrize(("count", "seconds", "expected"), [
    (50, 2.1, [2.0, 50]),  # as most sound is
    (50, 3.2, [3.2, 80]),
    (1, 3.9, [3.9, 5]),  # at first, with the texts' changes, and near its end
])  # fmt: skip
def test_the_last_picture_stays_while_sound_goes_on(count, seconds, expected, tmp_path):
    path = write(tmp_path / "a.mp4", scene(count), sound="aac", seconds=seconds)
    copy = copied(path, "một", "", "ba", "bốn")
    times, shown = odd_videos.pictures(copy)
    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        assert [float(stream.duration * stream.time_base), len(shown)] == [
            pytest.approx(expected[0], abs=0.05),
            expected[1],
        ]
    texts = [text_in(picture) > 0 for picture in shown]
    assert texts == [int(time) != 1 for time in times]
    top = [picture[:40] for picture in shown[count - 1 :]]
    assert np.abs(np.int16(top) - np.int16(top[0])).mean() < 2


@pytest.mark.parametrize(("ending", "codec", "rate", "layout"), [
    ("mp4", "aac", 44_100, "stereo"), ("mkv", "aac", 8000, "mono"), ("mkv", "libmp3lame", 44_100, "stereo"),
    ("webm", "libopus", 48_000, "stereo"), ("mkv", "ac3", 48_000, "5.1(side)"), ("mkv", "flac", 96_000, "mono"),
    ("mov", "alac", 48_000, "stereo"),
])  # fmt: skip
def test_sound_that_mp4_holds_is_copied(ending, codec, rate, layout, tmp_path):
    video = {"codec": "libvpx"} if ending == "webm" else {}
    path = write(tmp_path / f"a.{ending}", scene(25), sound=codec, sound_rate=rate, layout=layout, seconds=1, **video)
    copy = copied(path)
    assert odd_videos.packets(copy) == odd_videos.packets(path)
    (start, before_rate, before), (copy_start, after_rate, after) = map(odd_videos.samples, (path, copy))
    assert (after_rate, len(after)) == (before_rate, len(before)) and abs(copy_start - start) < 0.002
    count = min(before.shape[1], after.shape[1], rate // 2)
    lags = [np.abs(after[0, lag : lag + count] - before[0, :count][: after.shape[1] - lag]).max() for lag in range(64)]
    assert min(lags) < 1e-3  # less than 1.4 ms late


@pytest.mark.parametrize(("ending", "codec", "rate", "layout", "expected"), [
    ("avi", "pcm_s16le", 22_050, "mono", (22_050, "mono")), ("mkv", "pcm_s24le", 192_000, "5.1", (96_000, "5.1")),
    ("mkv", "vorbis", 48_000, "stereo", (48_000, "stereo")), ("mpg", "mp2", 32_000, "stereo", (32_000, "stereo")),
])  # fmt: skip
def test_other_sound_is_encoded_at_its_own_rate_and_channels(ending, codec, rate, layout, expected, tmp_path):
    video = {"codec": {"avi": "mpeg4", "mpg": "mpeg2video"}.get(ending, "libx264")}
    path = write(tmp_path / f"a.{ending}", scene(25), sound=codec, sound_rate=rate, layout=layout, seconds=1, **video)
    copy = copied(path)
    with av.open(str(copy)) as container:
        context = container.streams.audio[0].codec_context
        assert (context.name, context.sample_rate, context.layout.name) == ("aac", *expected)
    _, _, wave = odd_videos.samples(copy)
    for number, channel in enumerate(wave):  # each holds its own tone
        part = channel[expected[0] // 4 :][: expected[0] // 2]
        loudest = 2 * np.argmax(np.abs(np.fft.rfft(part)))
        assert loudest == pytest.approx(300 + 150 * number, abs=15) or number == 3  # a woofer has no such tones


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize(("start", "ending"), [(0.7, "mov"), (0.3, "mkv")])
def test_sound_that_begins_late_begins_late(start, ending, codec, tmp_path):
    path = write(tmp_path / f"a.{ending}", scene(50), sound=codec, seconds=1, sound_start=start)
    first, rate, wave = odd_videos.samples(copied(path))
    assert first + np.argmax(np.abs(wave[0]) > 0.05) / rate == pytest.approx(start, abs=0.003)


def test_pictures_that_begin_late_and_a_track_cut_by_its_container(tmp_path):
    path = write(tmp_path / "a.mkv", scene(25), times=0.2 + np.arange(25) / 25, sound="aac", seconds=1.2)
    assert [float(time) for time in odd_videos.pictures(copied(path))[0]][:2] == [0.2, 0.24]
    path = write(tmp_path / "b.mkv", scene(25), times=2.2 + np.arange(25) / 25, sound="aac", seconds=3.2)
    times, shown = odd_videos.pictures(copied(path, "", "hai"))  # text needs a picture
    assert [float(time) for time in times][:5] == [0, 1, 2, 2.2, 2.24]
    assert [text_in(picture) > 0 for picture in shown][:4] == [False, True, False, False]
    cut = bytearray(write(tmp_path / "c.mp4", scene(100), sound="aac", seconds=4).read_bytes())
    for place in (cut.index(b"elst"), cut.rindex(b"elst")):  # edit lists: both tracks lose their first second
        scale = int.from_bytes(cut[cut.index(b"mdhd", place) + 16 :][:4])
        for at, change in ((12, -1000), (16, scale)):
            cut[place + at : place + at + 4] = (int.from_bytes(cut[place + at :][:4]) + change).to_bytes(4)
    (tmp_path / "c.mp4").write_bytes(cut)
    copy = copied(tmp_path / "c.mp4")
    assert (
        odd_videos.pictures(copy)[0] == odd_videos.pictures(tmp_path / "c.mp4")[0]
        and len(odd_videos.pictures(copy)[0]) == 75
    )
    before, after = (odd_videos.samples(one)[2] for one in (tmp_path / "c.mp4", copy))
    np.testing.assert_allclose(after[:, :140_000], before[:, :140_000], atol=1e-5)


def test_files_joined_or_damaged_are_heard_as_far_as_they_can_be(tmp_path):
    single = write(tmp_path / "a.ts", scene(25), sound="aac", seconds=1).read_bytes()
    (tmp_path / "b.ts").write_bytes(2 * single)
    times, shown = odd_videos.pictures(copied(tmp_path / "b.ts"))
    assert len(shown) == 50 and float(times[-1] - times[0]) == pytest.approx(1.96, abs=0.08)
    assert odd_videos.samples(tmp_path / "b.ts.copy.mp4")[2].shape[1] / 48_000 == pytest.approx(2.0, abs=0.1)
    damaged = bytearray(SPEECH.read_bytes())
    damaged[60_000:61_000] = bytes(1000)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    _, rate, wave = odd_videos.samples(copied(tmp_path / "damaged.mp4"))
    assert wave.shape[1] / rate == pytest.approx(8.75, abs=0.1)


@pytest.mark.parametrize(("codec", "form"), [
    ("ffv1", "gray"), ("ffv1", "bgr0"), ("ffv1", "gbrp10le"), ("libx264", "yuv444p"), ("libx264", "yuv420p10le"),
    ("prores_ks", "yuv422p10le"), ("mjpeg", "yuvj420p"), ("ffv1", "yuva420p"), ("ffv1", "yuv410p"),
])  # fmt: skip
def test_all_pixel_formats_keep_their_colours(codec, form, tmp_path):
    path = write(tmp_path / "a.mov" if codec == "prores_ks" else tmp_path / "a.mkv", scene(5), codec=codec, form=form)
    (_, before), (_, after) = map(odd_videos.pictures, (path, copied(path)))
    assert np.abs(np.mean(np.int16(after) - np.int16(before), (0, 1, 2))).max() < 3
    assert np.abs(np.int16(after) - np.int16(before)).mean() < 4
    with av.open(f"{path}.copy.mp4") as container:
        assert container.streams.video[0].codec_context.pix_fmt == ("yuvj420p" if form == "yuvj420p" else "yuv420p")


@pytest.mark.parametrize(("shape", "rotation", "oblong", "expected"), [
    ((96, 128), 90, None, (128, 96)), ((96, 128), 180, None, (96, 128)), ((96, 128), 270, Fraction(5, 4), (160, 96)),
    ((96, 128), 0, Fraction(4, 3), (96, 172)), ((1, 1), 0, None, (2, 2)), ((33, 47), 0, None, (34, 48)),
    ((12, 20_000), 0, None, (10, 16_384)),
])  # fmt: skip
def test_pictures_are_upright_of_square_pixels_and_even(shape, rotation, oblong, expected, tmp_path):
    ending, codec, form = ("mp4", "libx264", "yuv420p") if rotation or oblong else ("mkv", "ffv1", "bgr0")
    path = write(tmp_path / f"a.{ending}", scene(1, *shape), codec=codec, form=form, rotation=rotation, oblong=oblong)
    _, (picture,) = odd_videos.pictures(copied(path))
    assert picture.shape[:2] == expected
    if max(shape) < 1000:
        upright = next(read_recording(path).frames())
        height, width = upright.shape[:2]
        assert np.abs(np.int16(picture[:height, :width]) - upright).mean() < 8


def test_pictures_with_more_pixels_than_video_has_become_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(painter, "_MOST_PIXELS", 96 * 128 // 4)
    _, (picture,) = odd_videos.pictures(copied(write(tmp_path / "a.mp4", scene(1))))
    smaller = cv2.resize(scene(1)[0], (64, 48), interpolation=cv2.INTER_AREA)
    assert picture.shape == smaller.shape and np.abs(np.int16(picture) - smaller).mean() < 8
    black = write(tmp_path / "b.mp4", [np.zeros((96, 128, 3), np.uint8)])
    _, (picture,) = odd_videos.pictures(copied(black, boxes=[(96, 48, 24, 0)]))
    drawn = np.argwhere(picture.max(-1) > 100)
    assert (drawn.min(0) + drawn.max(0)) / 2 == pytest.approx([24, 48], abs=1)


@pytest.mark.parametrize(("rate", "rotation"), [(12, 0), (25, 0), (60, 0), (25, 90)])
def test_the_box_is_where_the_mouth_is(rate, rotation, tmp_path):
    """A box goes to the right with time, first green, then orange."""
    path = write(tmp_path / "a.mp4", [np.zeros((96, 192, 3), np.uint8)] * (2 * rate), rate, rotation=rotation)
    boxes = [(20 + index, 40, 16, 0) for index in range(50)]
    colours = []
    for time, picture in zip(*odd_videos.pictures(copied(path, boxes=boxes)), strict=True):
        drawn = np.argwhere(picture.max(-1) > 100)
        middle = (drawn.min(0) + drawn.max(0)) / 2
        assert middle[0] == pytest.approx(40, abs=1)
        expected = 20 + 25 * float(time) + 25 * min(1 / rate, 1 / 25) / 2 - 0.5
        assert middle[1] == pytest.approx(expected, abs=1.1)
        colours.append(picture[tuple(drawn.T)].mean(0))
    for (_, green, red), seen in ((colours[0], True), (colours[-1], False)):
        assert green > 1.3 * red if seen else red > 1.3 * green


def test_a_text_is_drawn_once_and_not_for_every_picture(tmp_path):
    lettering.lettering.cache_clear()
    copied(write(tmp_path / "a.mp4", scene(75)), "một", "hai", "một")
    assert lettering.lettering.cache_info().misses <= 4


def test_without_pictures_there_is_nothing_to_copy(tmp_path):
    path = write(tmp_path / "a.mp4", scene(5), sound="aac")
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.m4a"), "w") as container:
        stream = container.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            packet.stream = stream
            container.mux(packet)
    with pytest.raises(InputError, match="b.m4a: has no pictures to write subtitles on"):
        copied(tmp_path / "b.m4a")
