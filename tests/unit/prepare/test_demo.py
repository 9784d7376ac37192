"""The demo corpus: sentences, speech and its timings, visemes in pixels, names of files."""

import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from viavsp_jax.data.features import SAMPLE_RATE
from viavsp_jax.data.media import read_video
from viavsp_jax.prepare.demo import corpus, sentences, speech
from viavsp_jax.prepare.demo.corpus import PHONEMES, SPEAKERS, frame_labels, plan_clips, render_clip, word_lines
from viavsp_jax.prepare.demo.face import Face, render
from viavsp_jax.prepare.demo.sentences import SPLITS, sample_sentences, split_of
from viavsp_jax.prepare.demo.speech import Phoneme, Speaker, is_vowel, synthesize
from viavsp_jax.runtime.errors import InputError

SPEAKER = Speaker("tester", "vi", "m3", pitch=50, pitch_range=50, rate=175, loudness=-23.0)
VOICES = ("vi", "vi-vn-x-central", "vi-vn-x-south")


def syllables_of_the_grammar() -> list[str]:
    phrases = [phrase for times, aspects in sentences._TENSES.values() for phrase in times + aspects]
    phrases += [*sentences._SUBJECTS, *sentences._NUMBERS, *sentences._COMPANY, *sentences._PLACES]
    for verb, objects in sentences._VERBS:
        phrases.append(verb)
        phrases += [word for item in objects for word in (item.classifier, item.noun, *item.adjectives)]
    return sorted(set(unicodedata.normalize("NFC", " ".join(phrases)).split()))


SYLLABLES = syllables_of_the_grammar()


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


def samples_of(spoken: speech.Speech, phoneme: Phoneme) -> np.ndarray:
    return spoken.samples[round(phoneme.start * SAMPLE_RATE) : round(phoneme.end * SAMPLE_RATE)]


def test_sentences_are_well_formed_and_reproducible():
    assert len(SYLLABLES) >= 60
    sampled = sample_sentences(0, 300, "train")
    assert sampled == sample_sentences(0, 300, "train")
    assert sampled != sample_sentences(1, 300, "train")
    assert sampled[:100] == sample_sentences(0, 100, "train")
    for sentence in sampled:
        assert sentence == unicodedata.normalize("NFC", sentence).lower()
        assert 6 <= len(sentence.split(" ")) <= 10
        assert set(sentence.split(" ")) <= set(SYLLABLES)
    assert set(" ".join(sample_sentences(0, 1500, "train")).split()) == set(SYLLABLES)


def test_splits_share_no_sentence_and_the_grammar_is_large():
    found = {split: set(sample_sentences(7, 2000, split)) for split in SPLITS}
    assert sum(len(sentences) for sentences in found.values()) == len(set().union(*found.values()))
    assert all(split_of(sentence) == split for split in SPLITS for sentence in found[split])
    # A tenth of all sentences are test sentences, so 10,500 distinct ones mean more than 100,000 in all.
    assert len(set(sample_sentences(0, 10_500, "test"))) == 10_500
    with pytest.raises(ValueError, match="dev"):
        sample_sentences(0, 1, "dev")


def test_speakers_of_validation_and_test_are_heard_nowhere_else():
    ids = {split: {speaker.id for speaker in cast} for split, cast in SPEAKERS.items()}
    variants = {split: {speaker.variant for speaker in cast} for split, cast in SPEAKERS.items()}
    for held_out in ("valid", "test"):
        for other in set(SPLITS) - {held_out}:
            assert not ids[held_out] & ids[other]
            assert not variants[held_out] & variants[other]
    for cast in SPEAKERS.values():
        assert {speaker.voice for speaker in cast} == set(VOICES)


def test_phonemes_cover_the_audio_without_gap_and_follow_its_energy():
    spoken = synthesize("bác sĩ đang đọc sáu quyển sách hay", SPEAKER)
    assert spoken.samples.dtype == np.int16 and len(spoken.samples) % 640 == 0
    phonemes = spoken.phonemes
    assert phonemes[0].start == 0 and phonemes[-1].end == len(spoken.samples) / SAMPLE_RATE
    assert all(a.end == b.start for a, b in zip(phonemes, phonemes[1:], strict=False))
    assert all(p.end > p.start for p in phonemes)
    assert sum(p.end - p.start for p in phonemes) == pytest.approx(len(spoken.samples) / SAMPLE_RATE)

    vowels = [rms(samples_of(spoken, p)) for p in phonemes if is_vowel(p.name)]
    assert len(vowels) == 8
    for silence in (phonemes[0], phonemes[-1]):
        assert rms(samples_of(spoken, silence)) < min(vowels) / 50
    # The first sound begins where the timings say: 10 ms later there is speech.
    begin = round(phonemes[0].end * SAMPLE_RATE)
    first_loud = np.flatnonzero(np.abs(spoken.samples.astype(int)) > 100)[0]
    assert 0 <= first_loud - begin < 0.04 * SAMPLE_RATE


def test_timings_agree_with_the_spectrum():
    """/s/ hisses, so its samples change sign far more often than those of the vowel after it."""
    spoken = synthesize("sáu sĩ sữa sẽ xem xoài", SPEAKER)

    def crossings(phoneme: Phoneme) -> float:
        part = samples_of(spoken, phoneme).astype(int)
        return float(np.mean(part[:-1] * part[1:] < 0))

    pairs = [(a, b) for a, b in zip(spoken.phonemes, spoken.phonemes[1:], strict=False) if a.name == "s"]
    assert len(pairs) == 6
    for hiss, after in pairs:
        assert crossings(hiss) > 2 * crossings(after)


def test_closures_of_stops_are_silent():
    spoken = synthesize("bếp đẹp bếp", SPEAKER)
    vowel = min(rms(samples_of(spoken, p)) for p in spoken.phonemes if is_vowel(p.name))
    finals = [p for p in spoken.phonemes if p.name == "p"]
    assert len(finals) == 3
    for p in finals:
        assert p.end - p.start >= 0.04
        assert rms(samples_of(spoken, p)) < vowel / 10


def test_words_are_said_one_after_the_other_and_their_vowels_are_heard():
    text = "anh trai tôi đã ăn một bát phở"
    spoken = synthesize(text, SPEAKERS["test"][0])
    times = spoken.word_times()
    assert len(times) == len(text.split())
    assert times[0][0] == spoken.phonemes[0].end and times[-1][1] == spoken.phonemes[-1].start
    assert all(before[1] == after[0] for before, after in itertools.pairwise(times)), "without a pause between them"
    assert all(0.05 < end - start < 0.6 for start, end in times)
    for start, end in times:  # as loud as speech inside of each
        part = spoken.samples[round(16_000 * start) : round(16_000 * end)].astype(float)
        assert np.abs(part).max() > 10 * np.abs(spoken.samples[:800]).max()
    clip = render_clip(plan_clips(0, 1, "test")[0])
    words = json.loads(word_lines(clip))
    assert [word for word, _, _ in words] == clip.transcript.split()
    assert [(start, end) for _, start, end in words] == [(round(a, 4), round(b, 4)) for a, b in clip.word_times]


def test_tones_come_from_the_syllable():
    spoken = synthesize("ba bà bá bả bã bạ", SPEAKER)
    assert [p.tone for p in spoken.phonemes if is_vowel(p.name)] == [1, 2, 3, 4, 5, 6]
    spoken = synthesize("cửa hàng một mình", SPEAKER)
    per_syllable = [p.tone for p in spoken.phonemes if is_vowel(p.name)]
    assert per_syllable == [4, 2, 6, 2]
    assert spoken.phonemes[0].tone == spoken.phonemes[-1].tone == 0


def test_speech_depends_on_nothing_said_before():
    first, other = sample_sentences(0, 2, "train")
    alone = synthesize(first, SPEAKER).samples
    synthesize(other, Speaker("other", "vi-vn-x-south", "f2", 60, 40, 190, -20.0))
    np.testing.assert_array_equal(synthesize(first, SPEAKER).samples, alone)


def test_loudness_and_resampling():
    quiet, loud = (synthesize("ba", Speaker("s", "vi", "m3", 50, 50, 175, db)).samples for db in (-40.0, -20.0))
    assert 20 * np.log10(rms(loud) / rms(quiet)) == pytest.approx(20, abs=0.2)


def test_speech_errors_name_the_cause(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"vi\+nobody"):
        synthesize("ba", Speaker("x", "vi", "nobody", 50, 50, 175, -20.0))
    with pytest.raises(InputError, match=r"nowhere\+m3"):
        synthesize("ba", Speaker("x", "nowhere", "m3", 50, 50, 175, -20.0))
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(speech, "_library_and_data", lambda: (str(broken), "/nowhere"))
    with pytest.raises(InputError, match=r"libespeak-ng\.so"):
        synthesize("ba", SPEAKER)


def test_every_phoneme_of_the_grammar_has_a_viseme_and_a_label():
    texts = [" ".join(SYLLABLES[i : i + 8]) for i in range(0, len(SYLLABLES), 8)]
    texts += [sentence for split in SPLITS for sentence in sample_sentences(5, 10, split)]
    spoken = set()
    for voice in VOICES:
        speaker = Speaker("x", voice, "f1", 50, 50, 200, -20.0)
        spoken |= {p.name for text in texts for p in synthesize(text, speaker).phonemes}
    assert spoken == set(PHONEMES)
    assert PHONEMES[0] == speech.SILENCE and list(PHONEMES[1:]) == sorted(PHONEMES[1:])


# Blue lips on grey skin: the pixels of the lips can be told from all others.
BLUE_LIPS = Face(
    texture_seed=1, skin=(150, 150, 150), lips=(255, 60, 60), half_width=24, lip_thickness=1, opening=17,
    folds=0.05, stubble=0, light_angle=0, light_contrast=0.05, scale=1.1, position=(0, 0),
)  # fmt: skip


def mouth_of(name: str) -> dict[str, float]:
    """Measures in pixels of the middle frame of one long phoneme."""
    phonemes = (Phoneme("sil", 0, 0.2, 0, -1), Phoneme(name, 0.2, 0.6, 1, 0), Phoneme("sil", 0.6, 0.8, 0, -1))
    frames = render(phonemes, 20, BLUE_LIPS, np.random.default_rng(3))
    assert frames.shape == (20, 96, 96, 3) and frames.dtype == np.uint8
    frame = frames[9].astype(int)
    lips = frame[..., 0] > frame[..., 2] + 50
    rows, columns = np.flatnonzero(lips.any(1)), np.flatnonzero(lips.any(0))
    middle = slice((columns[0] + columns[-1]) // 2 - 2, (columns[0] + columns[-1]) // 2 + 3)
    inside = ~lips[rows[0] : rows[-1], middle]
    bright = frame.min(-1)[rows[0] : rows[-1], middle] > 140
    return {
        "gap": float(inside.sum() / 5),
        "width": float(columns[-1] - columns[0]),
        "teeth": float((inside & bright).sum() / 5),
    }


def test_visemes_are_visible():
    mouth = {name: mouth_of(name) for name in ("m", "b", "p", "f", "aː", "i", "u", "o", "e", "s")}
    for bilabial in "mbp":
        assert mouth[bilabial]["gap"] < 4 < 14 < mouth["aː"]["gap"]
        assert mouth[bilabial]["teeth"] == 0
    assert mouth["i"]["width"] > mouth["aː"]["width"] > 1.3 * mouth["u"]["width"]
    assert mouth["e"]["width"] > 1.4 * mouth["o"]["width"]
    for dental in ("f", "s", "i"):
        assert mouth[dental]["teeth"] > 1
    assert mouth["u"]["teeth"] == 0
    with pytest.raises(InputError, match="'qq'"):
        mouth_of("qq")


def test_video_moves_with_the_speech():
    """The lips of a running sentence are apart in the frames of /aː/ and together in those of /b/ and /m/."""
    spoken = synthesize("ba mẹ bán ba con cá", SPEAKER)
    num_frames = len(spoken.samples) // 640
    frames = render(spoken.phonemes, num_frames, BLUE_LIPS, np.random.default_rng(0))
    dark = (frames.max(-1) < 80)[:, 30:80].mean((1, 2))
    names = np.array(PHONEMES)[frame_labels(spoken.phonemes, num_frames)[0]]
    open_, closed = dark[names == "aː"], dark[np.isin(names, ["b", "m"])]
    assert len(open_) >= 4 and len(closed) >= 4
    assert np.median(open_) > 4 * np.median(closed)


def test_frame_labels_are_the_phoneme_at_the_centre():
    clip = plan_clips(0, 1, "pretrain")[0]
    spoken = synthesize(clip.transcript, clip.speaker)
    rendered = render_clip(clip)
    assert len(rendered.frames) == len(rendered.phoneme_labels) == len(rendered.samples) / 640
    for t, (label, tone) in enumerate(zip(rendered.phoneme_labels, rendered.tone_labels, strict=True)):
        (expected,) = (p for p in spoken.phonemes if p.start <= (t + 0.5) / 25 < p.end)
        assert (PHONEMES[label], tone) == (expected.name, expected.tone)
        assert (tone == 0) == (label == 0)


def test_a_relative_folder_with_a_colon(tmp_path, monkeypatch):
    """FFmpeg would take what is before it for a protocol."""
    monkeypatch.chdir(tmp_path)
    Path("run:2").mkdir()
    corpus._write_video(Path("run:2/50%d [a].mp4"), np.full((3, corpus.SIZE, corpus.SIZE, 3), 80, np.uint8))
    assert [path.name for path in tmp_path.rglob("*.mp4")] == ["50%d [a].mp4"]
    assert len(read_video("run:2/50%d [a].mp4")) == 3
