"""Which parts of a recording are transcribed, and by what."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viavsp_jax.app import windows
from viavsp_jax.app.inputs import Source
from viavsp_jax.app.windows import Window
from viavsp_jax.data.features import filterbank, stack
from viavsp_jax.prepare.demo.corpus import SPEAKERS
from viavsp_jax.prepare.demo.speech import synthesize

RNG = np.random.default_rng(0)
SPEECH = synthesize("hôm qua chú tư vừa mua hoa thơm", SPEAKERS["test"][0]).samples
LENGTH = len(SPEECH) // 640


def source(samples, frames=None, seen=True):
    num_frames = len(frames) if samples is None else -(-len(samples) // 640)
    return Source("a", num_frames, frames, np.broadcast_to(seen, num_frames), samples, None, None, None)


def pause(seconds, rms=5):
    return RNG.normal(0, rms, round(16_000 * seconds)).astype(np.int16)


def crops(count, still=()):
    moving = RNG.integers(0, 255, (count, 96, 96)).astype(np.uint8)
    for start, end in still:
        moving[start:end] = moving[start]
    return moving


def test_windows_are_trimmed_to_speech():
    whole = source(np.concatenate([pause(2), SPEECH, pause(1), SPEECH, pause(3)]))
    found = windows.plan(whole, None, 0.5, 75)
    assert [window.modality for window in found] == ["audio", "audio"]
    for window, start in zip(found, (50, 75 + LENGTH), strict=True):
        assert window.cut == (window.first, window.end) and not window.goes_on
        assert start - 3 <= window.first <= start + 4 and -4 <= window.end - (start + LENGTH) <= 6
    assert windows.plan(source(pause(5, 300)), None, 0.5, 75) == []


def test_quiet_speech_has_the_same_windows():
    """Much of it is rounded to digital silence."""
    samples = np.concatenate([pause(2, 0), SPEECH, pause(1, 0), SPEECH, pause(3, 0)])
    loud, quiet = (
        windows.plan(source(one), None, 0.5, 75) for one in (samples, np.rint(samples / 50).astype(np.int16))
    )
    assert len(quiet) == 2
    for one, other in zip(loud, quiet, strict=True):
        assert abs(one.first - other.first) <= 2 and abs(one.end - other.end) <= 2


@pytest.mark.parametrize("room", [0, 1, 5, 8, 9, 20])
def test_margins_are_smaller_where_a_window_would_be_too_long(room):
    samples = np.concatenate([pause(2), SPEECH, pause(2)])
    probability = windows.voice.speech_probability(samples, -(-len(samples) // 640))
    ((start, end),) = windows.voice.spoken(probability)
    (window,) = windows.plan(source(samples), None, 0.5, end - start + room)
    assert window.first == start - min(5, (room + 1) // 2) and window.end == end + min(4, room // 2)
    assert len(windows.plan(source(samples), None, 0.5, end - start - 1)) == 2


def test_long_speech_is_cut_and_both_hear_the_seam():
    whole = source(np.concatenate([SPEECH[3200:-3200]] * 4))
    found = windows.plan(whole, None, 0.5, 40)
    assert len(found) > 2 and max(window.end - window.first for window in found) <= 40
    for before, after in zip(found, found[1:], strict=False):
        assert before.cut[1] == after.cut[0] and after.goes_on
        assert before.end - after.first == 6
    assert not found[0].goes_on


@pytest.mark.parametrize(("seen", "expected"), [(1.0, "av"), (0.85, "av"), (0.7, "audio"), (0.0, "audio")])
def test_lips_are_read_where_a_mouth_is_seen(seen, expected):
    mask = np.arange(LENGTH) < seen * LENGTH
    (window,) = windows.plan(source(SPEECH, crops(LENGTH), mask), None, 0.5, 75)
    assert window.modality == expected
    (window,) = windows.plan(source(SPEECH, crops(LENGTH), mask), "av", 0.5, 75)
    assert window.modality == "av"  # as was asked for


@pytest.mark.parametrize(("seen", "expected"), [(0.7, "av"), (0.25, "av"), (0.1, "audio")])
def test_a_model_that_knows_lost_video_reads_lips_where_less_is_seen(seen, expected):
    mask = np.arange(LENGTH) < seen * LENGTH
    (window,) = windows.plan(source(SPEECH, crops(LENGTH), mask), None, 0.5, 75, knows_lost_video=True)
    assert window.modality == expected


def test_lips_alone_are_read_where_there_is_no_sound():
    video = crops(150, still=[(0, 30), (80, 150)])
    (window,) = windows.plan(source(None, video), None, 0.5, 75)
    assert window.modality == "video" and abs(window.first - 30) < 8 and abs(window.end - 80) < 8
    faded = source(np.concatenate([SPEECH, np.zeros(150 * 640 - len(SPEECH), np.int16)]), crops(150))
    found = windows.plan(faded, None, 0.5, 75)
    assert [window.modality for window in found] == ["av", "video", "video"] and found[-1].end == 150
    quiet = source(np.concatenate([SPEECH, pause(6 - LENGTH / 25)]), crops(150))
    assert [window.modality for window in windows.plan(quiet, None, 0.5, 75)] == ["av"]  # nobody speaks there


def test_a_smile_is_no_speech():
    smile = np.full((50, 96, 96), 120, np.uint8)
    for number in range(50):
        smile[number, 55 : 60 + number // 2, 30:66] = 200
    assert windows.plan(source(None, smile), None, 0.5, 75) == []


def test_all_of_it_without_a_detector():
    assert windows.plan(source(pause(2, 300)), None, None, 75) == [Window(0, 50, (0, 50), "audio")]
    assert windows.plan(source(None, np.zeros((50, 96, 96), np.uint8)), "video", None, 75) == [
        Window(0, 50, (0, 50), "video")
    ]
    found = windows.plan(source(pause(10, 300)), None, None, 75)
    assert found[0].first == 0 and found[-1].end == 250 and len(found) == 4
    assert windows.plan(source(pause(2, 0)), None, None, 75) == []


@given(st.lists(st.floats(0, 80), min_size=1, max_size=120), st.integers(3, 40))
def test_windows_cover_all_frames_and_are_no_longer_than_asked(activity, longest):
    found = windows.cut(np.array(activity), longest)
    assert found[0][0] == 0 and found[-1][1] == len(activity)
    assert all(before[1] == after[0] for before, after in zip(found, found[1:], strict=False))
    sizes = [end - start for start, end in found]
    assert max(sizes) <= longest and (len(found) == 1 or min(sizes) >= longest // 3)


def test_windows_are_cut_at_pauses():
    activity = np.full(200, 60.0)
    activity[[60, 61, 110, 111, 150, 151]] = 10.0
    assert [end for _, end in windows.cut(activity, 76)] == [61, 111, 151, 200]


def test_a_window_hears_what_the_whole_hears():
    """The features of a window are those rows of the recording's own, but for the first: pre-emphasis begins anew."""
    samples = (np.random.default_rng(0).normal(size=40 * 640 + 77) * 900).astype(np.int16)
    whole = stack(filterbank(samples))
    part = stack(filterbank(windows.samples_of(samples, 10, 25)))
    assert len(part) == 15
    np.testing.assert_array_equal(part[1:], whole[11:25])
