"""Recordings whose pictures do not cover all of the sound: read to the end, and never a training pair."""

import itertools
import re

import numpy as np
import pytest
from etils import epath
from real_videos import SPEECH, first, write_video

from viavsp_jax.app.recognizer import Hypothesis, Recognition
from viavsp_jax.app.transcriber import Clip, Transcriber
from viavsp_jax.prepare.recordings import mouth_clips
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.runtime.errors import InputError

RNG = np.random.default_rng(0)
CROPS = RNG.integers(60, 200, (250, 96, 96, 1)).astype(np.uint8).repeat(3, -1)
VOICE = RNG.integers(-4000, 4000, 160_000).astype(np.int16)


class Modalities:
    """A recognizer that tells how it was asked."""

    longest, num_beams, knows_lost_video = 75, 1, False

    def __call__(self, utterances, languages, num_beams):
        assert len({one.modality for one in utterances}) == 1
        assert all(one.frames is None or len(one.frames) == one.num_frames for one in utterances)
        return [Recognition((Hypothesis(one.modality, 0.0),), np.array([one.num_frames])) for one in utterances]


def read(media):
    """The windows as (first, end, modality), and how many frames there are."""
    transcript = Transcriber(Modalities())(media, vad=False)  # noise is no speech
    return [(*one.own, one.modality) for one in transcript.segments], transcript.num_frames


def recording(path, count, seconds, start=0.0, first_picture=0.0):
    times = first_picture + np.arange(count) / 25
    samples = VOICE[: round(16_000 * seconds)]
    return write_video(path, CROPS[:count], times=times, samples=samples, audio_times=[start])


@pytest.mark.parametrize(("count", "seconds", "start", "first_picture", "lips"), [
    (75, 9, 0, 0, (0, 75)),  # sound goes on
    (1, 6, 0, 0, None),  # one picture
    (50, 3, 4, 0, None),  # sound begins after the last one
    (75, 6, 0, 3, (75, 150)),  # pictures begin later
    (150, 6, 0, 0, (0, 150)),
])  # fmt: skip
def test_all_sound_is_read_and_lips_where_there_are_pictures(tmp_path, count, seconds, start, first_picture, lips):
    path = recording(tmp_path / "a.mkv", count, seconds, start, first_picture)
    windows, num_frames = read(path)
    assert num_frames == windows[-1][1] == round(25 * (start + seconds))
    assert all(before[1] == after[0] for before, after in zip(windows, windows[1:], strict=False))
    for begin, end, modality in windows:
        shown = 0 if lips is None else max(0, min(end, lips[1]) - max(begin, lips[0]))
        assert modality == ("av" if shown >= 0.8 * (end - begin) else "audio")
    assert (lips is None) == ("av" not in {modality for *_, modality in windows})


def test_a_few_frames_more_of_sound_change_nothing():
    frames, sound = CROPS[:70, ..., 0], VOICE[: 75 * 640]
    assert read(Clip(frames, sound)) == ([(0, 70, "av")], 70)
    assert read(Clip(frames, VOICE[: 76 * 640]))[1] == 76


def test_a_silent_track_leaves_lips(tmp_path):
    path = write_video(tmp_path / "a.mkv", CROPS[:50], samples=0 * VOICE[:32_000])
    assert read(path) == ([(0, 50, "video")], 50)


@pytest.fixture
def maker(tmp_path):
    """Makes a clip of a recording, which is always another one, and returns the note."""
    make, versions = mouth_clips.ClipMaker(epath.Path(tmp_path / "corpus"), None, False), itertools.count()
    return lambda path: make(mouth_clips.Source("a", "0000", str(path), [0, next(versions)]))


@pytest.mark.parametrize(("count", "seconds", "start", "first_picture", "unseen"), [
    (75, 9, 0, 0, "6.0"), (1, 6, 0, 0, "6.0"), (50, 3, 4, 0, "3.0"), (75, 6, 0, 3, "3.0"), (75, 3.1, 0, 0, None),
    (75, 2, 0, 0, None), (75, 3, 0, 0.16, None),
])  # fmt: skip
def test_speech_without_a_mouth_is_no_training_pair(tmp_path, maker, count, seconds, start, first_picture, unseen):
    note = maker(recording(tmp_path / "a.mkv", count, seconds, start, first_picture))
    if unseen is None:
        assert "reason" not in note and note["samples"] >= round(16_000 * seconds)
    else:
        assert f"a.mkv: for {unseen} s there is sound as loud as speech, but no picture" in note["reason"]
        assert not list(tmp_path.rglob("*.mp4"))


def test_what_is_quiet_without_pictures_is_no_speech(tmp_path, maker):
    """A room before and after a sentence."""
    samples = np.concatenate([VOICE[:32_000] // 40, VOICE[:32_000], VOICE[:32_000] // 40])
    path = write_video(tmp_path / "a.mkv", CROPS[:60], times=1.8 + np.arange(60) / 25, samples=samples)
    assert "reason" not in maker(path)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_picture_that_stands_still_shows_no_speech(tmp_path, maker, codec):
    """As software makes a video of a sound and a picture: coded anew 25 times a second, and with errors of coding."""
    (picture,) = (frame[:96, 140:236] for frame in first(SPEECH, 1))
    path = write_video(tmp_path / "a.mkv", [picture] * 100, samples=VOICE[:64_000], codec=codec)
    found = r"a\.mkv: for (3\.[5-9]|4\.0) s there is sound as loud as speech, but no picture or one that stands still"
    assert re.search(found, maker(path)["reason"])
    assert read_recording(path).size == (96, 96)
    moving = [np.roll(picture, number % 7, 0) for number in range(100)]
    assert "reason" not in maker(write_video(tmp_path / "a.mkv", moving, samples=VOICE[:64_000], codec=codec))


def test_neither_sound_nor_lips(tmp_path):
    path = write_video(tmp_path / "a.mkv", CROPS[:50], samples=0 * VOICE[:32_000])
    with pytest.raises(InputError, match="has no sound, which the modality audio needs"):
        Transcriber(Modalities())(path, modality="audio")
