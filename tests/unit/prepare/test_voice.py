"""Where somebody speaks: by the sound, by the lips; and where there is neither."""

import functools

import numpy as np
import pytest

from viavsp_jax.prepare.demo.corpus import SPEAKERS
from viavsp_jax.prepare.demo.speech import synthesize
from viavsp_jax.prepare.recordings import voice

RNG = np.random.default_rng(0)
SECOND = 16_000


@functools.cache
def sentence(number: int) -> np.ndarray:
    return synthesize("hôm qua chú tư vừa mua hoa thơm", SPEAKERS["test"][number]).samples


def spans_of(samples, threshold=voice.THRESHOLD):
    num_frames = -(-len(samples) // 640)
    return voice.spoken(voice.speech_probability(samples, num_frames), threshold)


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("rms", [0, 5, 30])
def test_speech_between_pauses(number, rms):
    said = sentence(number)
    pause = (RNG.normal(0, rms, 2 * SECOND)).astype(np.int16)
    found = spans_of(np.concatenate([pause, said, pause, said, pause]))
    length = len(said) // 640
    assert len(found) == 2
    for (start, end), first in zip(found, (50, 100 + length), strict=True):
        # Its first and last 0.2 s are quiet, the detector answers 0.1 s late.
        assert first <= start <= first + 10 and first + length - 8 <= end <= first + length + 3


def music(seconds):
    """Chords of plucked strings, a bass and a drum, without a voice."""
    t = np.arange(seconds * SECOND) / SECOND
    beat = t % 0.5
    chords = np.array([[220, 277, 330], [196, 247, 294], [175, 220, 262], [165, 208, 247]])[(t // 2).astype(int) % 4]
    strings = sum(
        np.sin(2 * np.pi * chords[:, [note]][:, 0] * harmonic * t) / harmonic
        for note in range(3)
        for harmonic in (1, 2, 3)
    )
    drum = RNG.normal(size=len(t)) * np.exp(-60 * beat)
    return (1500 * strings * np.exp(-3 * beat) + 3000 * drum).clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize("samples", [
    np.zeros(30 * SECOND, np.int16), RNG.normal(0, 3000, 30 * SECOND).astype(np.int16),
    np.cumsum(RNG.normal(0, 100, 30 * SECOND)).clip(-9000, 9000).astype(np.int16), music(30),
    (8000 * np.sin(2 * np.pi * 440 * np.arange(30 * SECOND) / SECOND)).astype(np.int16), np.zeros(0, np.int16),
], ids=["silence", "white noise", "brown noise", "music", "tone", "nothing"])  # fmt: skip
def test_what_is_no_speech(samples):
    assert spans_of(samples) == []


def test_the_detector_forgets_what_it_heard_before():
    first = voice.speech_probability(sentence(0), 40)
    voice.speech_probability(music(3), 75)
    np.testing.assert_array_equal(voice.speech_probability(sentence(0), 40), first)
    assert not voice.speech_probability(sentence(0)[:6400], 40)[12:].any()  # nothing is said after the end


def test_spans_begin_above_the_threshold_and_end_with_a_pause():
    score = np.zeros(60)
    score[10:14], score[14:18], score[24:26] = 0.6, 0.4, 0.4  # goes on below the threshold and over a short pause
    score[12] = 0.97
    score[40:42] = 0.97  # too short
    score[50:55] = 0.45  # never above it
    assert voice.spoken(score) == [(10, 26)]
    assert voice.spoken(np.ones(5)) == [(0, 5)] and voice.spoken(np.zeros(0)) == []
    assert voice.spoken(np.full(24, 0.9)) == []  # never sure
    assert voice.spoken(np.full(25, 0.9)) == [(0, 25)] and voice.spoken(np.full(24, 0.95), 0.4) == [(0, 24)]


def talking(frames, still=0.2):
    """Crops of a mouth that opens and closes while `frames`, bool[T], and else is at rest under a camera's noise."""
    crops = np.full((len(frames), 96, 96), 120.0)
    for number in np.flatnonzero(frames):
        crops[number, 50 : 56 + 5 * (number % 3), 30:66] = 40
    return (crops + RNG.normal(0, still, crops.shape)).round().astype(np.uint8)


def test_lips_that_move():
    frames = np.zeros(150, bool)
    frames[20:60], frames[100:140] = True, True
    crops, seen = talking(frames), np.ones(150, bool)
    (a, b), (c, d) = voice.mouthed(voice.lip_movement(crops, seen))
    np.testing.assert_allclose([a, b, c, d], [20, 60, 100, 140], atol=3)
    seen[90:] = False
    assert voice.mouthed(voice.lip_movement(crops, seen)) == [(a, b)]
    assert voice.mouthed(voice.lip_movement(talking(0 * frames), seen)) == []
    assert voice.mouthed(voice.lip_movement(crops[:1], seen[:1])) == []


def mouth(opening):
    """Crops of a mouth that is open so far, float[T] from 0 to 1, under a camera's noise."""
    rows = np.arange(96)[:, None] - 58
    dark = np.clip(1.5 + 12 * np.asarray(opening)[:, None, None] - np.abs(rows), 0, 1) * (abs(np.arange(96) - 48) < 18)
    return (150 - 110 * dark + RNG.normal(0, 1, dark.shape)).round().astype(np.uint8)


@pytest.mark.parametrize(("opening", "expected"), [
    (np.linspace(0, 1, 50), False), (np.sin(np.linspace(0, np.pi, 60)), False),  # a smile; one that goes
    (np.clip(np.linspace(0, 9, 75), 0, 1), False),  # and one that stays
    (np.sin(np.linspace(0, np.pi, 12)), True), (np.sin(np.linspace(0, 6 * np.pi, 60)) ** 2, True),  # one syllable, six
    (np.concatenate([np.linspace(0, 1, 60), np.sin(np.linspace(0, 6 * np.pi, 60)) ** 2]), True),
])  # fmt: skip
def test_mouths_that_talk(opening, expected):
    assert voice.talks(mouth(opening)) == expected


def test_a_change_of_the_shot_does_not_hide_speech():
    said = mouth(np.sin(np.linspace(0, 6 * np.pi, 60)) ** 2)
    assert voice.talks(np.concatenate([255 - said[:3], said]))


def test_stretches_without_sound():
    samples = RNG.normal(0, 30, 4 * SECOND).astype(np.int16)
    samples[SECOND : 2 * SECOND + 1280] = 0
    samples[3 * SECOND : 3 * SECOND + 9600] = 0  # 0.6 s
    found = voice.without_sound(samples, 110)
    assert found.tolist() == [25 <= frame < 52 for frame in range(100)] + 10 * [False]
    assert voice.without_sound(samples, 130)[100:].all() and voice.without_sound(samples[:0], 30).all()
