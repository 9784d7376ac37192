"""Archives of ViCocktail's layout, as recorded and with what goes wrong in such files."""

import io
import json
import unicodedata

import numpy as np
import pytest
from open_corpus import ARCHIVES, NOISY, TEST, TRAIN, encoded, encoded_as, few, read_archive, write_archive
from places import GOLDEN_OPEN

from viavsp_jax.data import media
from viavsp_jax.prepare import measure
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.corpus.tars import archive_split
from viavsp_jax.prepare.features.reading import read_media
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.recordings.clip import read_clip
from viavsp_jax.prepare.recordings.mouth_video import write_video
from viavsp_jax.prepare.skipped import read_skipped

EXPECTED = json.loads((GOLDEN_OPEN / "vicocktail/expected.json").read_bytes())


def manifest(data, output, *options):
    main(["manifest", "--data", str(data), "--output", str(output), "--workers", "0", *options])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("avvn-train-000098", "train"),
        ("avvn-test-000000", "test"),
        ("avvn-test_snr_-5_interferer_2-000000", "test_snr_-5_interferer_2"),
        ("avyt-test_snr_n5_interferer_1-000012", "test_snr_-5_interferer_1"),
        ("avvn-test_snr_10_interferer_1", "test_snr_10_interferer_1"),
        ("dev_00001-of-00003", "valid"),
        ("train", "train"),
        ("000000", None),
        ("lrs3-pretrained-0001", None),
    ],
)
def test_the_split_is_in_the_name(name, split):
    assert archive_split(f"{name}.tar") == split


def test_recorded_archives(tmp_path, caplog):
    caplog.set_level("INFO")
    manifest(ARCHIVES.parent, tmp_path)
    assert "20 clips in 3 tar archives of samples" in caplog.text and "--valid 0.03" in caplog.text
    splits = {"train": TRAIN, "test": TEST, "test_snr_0_interferer_1": NOISY}
    for split, path in splits.items():
        expected = [one for one in EXPECTED if one["tar"] == path.name]
        clips = read_manifest(tmp_path, split)
        assert [clip.id for clip in clips] == [one["sample_id"] for one in expected]
        assert [clip.transcript for clip in clips] == [one["label"] for one in expected]
        assert [clip.num_frames for clip in clips] == [one["video"]["decoded_frames"] for one in expected]
    assert not (tmp_path / "skipped.jsonl").exists()


def test_a_share_is_for_validation_whole_recordings_at_a_time(tmp_path):
    chosen = set()
    for seed in range(4):
        for _ in range(2):
            manifest(ARCHIVES.parent, tmp_path / str(seed), "--valid", "0.2", "--seed", str(seed))
        train, valid = (read_manifest(tmp_path / str(seed), split) for split in ("train", "valid"))
        sources = [{clip.id.rsplit("_", 4)[0] for clip in clips} for clips in (train, valid)]
        assert len(valid) == 3 and len(sources[1]) == 1 and not sources[0] & sources[1]
        chosen |= sources[1]
    assert len(chosen) > 1, "it depends on the seed"


def odd(samples):
    """One sample of each kind, by key, and what becomes of it: a part of the reason, or None where it is used."""
    keys = iter(samples)
    good = {next(keys): None}
    frames, sound = (
        np.repeat(np.arange(0, 60, dtype=np.uint8) * 4, 96 * 96).reshape(60, 96, 96),
        np.zeros(38_400, int),
    )
    sound[1000:] = (8000 * np.sin(np.arange(37_400) / 9)).astype(int)
    stereo = np.stack([sound, sound], 1).repeat(3, 0)  # of 48 kHz, an octave and a half lower, of thrice the length
    changes = {
        "no label": ({"label": None}, "no transcript: "),
        "no video": ({"video": None}, "no video: "),
        "txt for label": ({"label": None, "txt": "câu một".encode()}, None),
        "mp4 for video": ({"video": None, "mp4": encoded(frames, sound)}, None),
        "truncated": ({"video": samples[next(keys)]["video"][:-5000]}, "unreadable: "),
        "no mp4": ({"video": b"<html>404</html>"}, "not a media file that can be read"),
        "30 fps": ({"video": encoded_as(frames, sound[:32_000, None], fps=30)}, None),
        "48 kHz stereo": ({"video": encoded_as(frames, stereo[: 48_000 * 60 // 25], rate=48_000)}, None),
        "160x160": (
            {"video": encoded_as(np.zeros((60, 160, 160), np.uint8), sound[:, None])},
            "is 160x160, expected 96x96",
        ),
        "no sound": ({"video": _silent_film(frames)}, "no sound: "),
        "NFD": ({"label": unicodedata.normalize("NFD", "Ðà Nẵng\u200b\n").encode()}, None),
        "not UTF-8": ({"label": b"\xff\xfe\0"}, "no transcript: b'"),
        "20 s": ({"video": encoded(np.resize(frames, (500, 96, 96)), np.resize(sound, 320_000))}, None),
        "too long": ({"video": encoded(np.resize(frames, (501, 96, 96)), np.resize(sound, 320_640))}, "too long: 501"),
        "id of another": ({"sample_id": samples[next(iter(samples))]["sample_id"]}, "repeated id: "),
        "id with a path": ({"sample_id": b"p1/spk/../x"}, None),
        "id with a tab": ({"sample_id": b"a\tb\0"}, "unusable id: "),
    }
    base = samples[next(keys)]
    made = {key: samples[key] for key in good}
    for name, (change, _) in changes.items():
        sample = {**base, "sample_id": name.encode()} | change
        made[name] = {suffix: content for suffix, content in sample.items() if content is not None}
    return made, good | {name: reason for name, (_, reason) in changes.items()}


def _silent_film(frames):
    file = io.BytesIO()
    write_video(file, frames)
    return file.getvalue()


@pytest.fixture(scope="module")
def oddities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd [1]")
    made, outcomes = odd(few(TRAIN, 4))
    write_archive(folder / "corpus/c-train-000000.tar", made)
    manifest(folder / "corpus", folder / "manifest")
    return folder, outcomes


def test_oddities_cost_no_other_clip(oddities):
    folder, outcomes = oddities
    clips = {clip.id: clip for clip in read_manifest(folder / "manifest", "train")}
    skipped = read_skipped(folder / "manifest")
    used = [name for name, reason in outcomes.items() if reason is None]
    assert len(clips) == len(used) and len(skipped) == len(outcomes) - len(used)
    for name, reason in outcomes.items():
        if reason:
            ids = {"id of another": next(iter(clips)), "id with a tab": "a b\0"}
            (line,) = [line for line in skipped if line["id"] == ids.get(name, name)]
            assert reason in line["reason"], line
    assert clips["NFD"].transcript == "Đà Nẵng" and clips["txt for label"].transcript == "câu một"
    assert clips["20 s"].num_frames == 500 and "p1_spk_.._x" in clips


def test_odd_media_are_read_as_a_player_shows_them(oddities):
    folder, _ = oddities
    clips = {clip.id: clip for clip in read_manifest(folder / "manifest", "train")}
    fast, stereo = (read_media(clips[name]) for name in ("30 fps", "48 kHz stereo"))
    # 60 pictures of 30 a second last two seconds.
    assert len(fast.frames) == clips["30 fps"].num_frames == 50
    pictures = media.read_video(clips["30 fps"].video)
    np.testing.assert_array_equal(fast.frames, pictures[((2 * np.arange(50) + 1) * 30 - 1) // 50])
    assert np.diff(pictures[:, 40, 40].astype(int)).min() > 0, "each is brighter than the one before"
    again = folder / "again.mp4"
    again.write_bytes(fast.video)  # what a record holds is of these frames, at 25 a second
    assert np.abs(read_clip(str(again), clips["mp4 for video"].audio).frames - fast.frames.astype(int)).mean() < 2
    # A third of the samples, at a third of the rate: the same tone.
    assert abs(len(stereo.samples) - 38_400) < 1100
    spectrum = np.abs(np.fft.rfft(stereo.samples[2000:34_000].astype(float)))
    assert abs(np.argmax(spectrum) / 32_000 * 16_000 - 16_000 / 9 / 2 / np.pi) < 2


def test_the_same_id_in_several_archives(tmp_path):
    """Of a split, the first is used; what is tested with is not trained with; conditions repeat the ids of the test."""
    samples = few(TRAIN, 3)
    first, *_ = samples
    tested = {"x": samples[first] | {"sample_id": samples[first]["sample_id"]}}
    write_archive(tmp_path / "c/a-train-000000.tar", samples)
    write_archive(tmp_path / "c/a-train-000001.tar", dict(list(samples.items())[1:2]))
    write_archive(tmp_path / "c/a-test-000000.tar", tested)
    write_archive(tmp_path / "c/a-test_snr_0_interferer_1-000000.tar", tested)
    manifest(tmp_path / "c", tmp_path / "out")
    counts = {
        split: len(read_manifest(tmp_path / "out", split)) for split in ("train", "test", "test_snr_0_interferer_1")
    }
    assert counts == {"train": 2, "test": 1, "test_snr_0_interferer_1": 1}
    reasons = sorted(line["reason"].split(":")[0] for line in read_skipped(tmp_path / "out"))
    assert reasons == ["held out", "repeated id"]


def test_an_archive_that_is_cut_off_and_one_that_is_none(tmp_path, caplog):
    samples = few(TRAIN, 4)
    path = write_archive(tmp_path / "c/a-train-000000.tar", samples)
    content = path.read_bytes()
    last = content.index(list(samples)[-1].encode() + b".video")
    path.write_bytes(content[: last + 2000])
    (tmp_path / "c/a-train-000001.tar").write_bytes(b"\x1f\x8b not tar")
    manifest(tmp_path / "c", tmp_path / "out")
    assert len(read_manifest(tmp_path / "out", "train")) == 3
    reasons = [line["reason"] for line in read_skipped(tmp_path / "out")]
    assert any("the archive ends after" in reason for reason in reasons)
    assert any("a-train-000001.tar: " in reason and "unreadable archive" in reason for reason in reasons)
    assert "a-train-000000.tar: cut off" in caplog.text


def test_whole_faces_are_said_to_be_no_mouths(tmp_path, capsys):
    samples = few(TRAIN, 2)
    face = encoded_as(np.zeros((30, 224, 224), np.uint8), np.zeros((19_200, 1), int))
    write_archive(tmp_path / "c/a-train-0000.tar", {key: sample | {"video": face} for key, sample in samples.items()})
    with pytest.raises(SystemExit):
        manifest(tmp_path / "c", tmp_path / "out")
    message = capsys.readouterr().err
    assert "2 of 2 clips are no mouth crops" in message and "is 224x224" in message and "prepare mouths" in message
    assert not (tmp_path / "out/train.tsv").exists()


def test_lists_of_another_corpus_are_not_left_beside_new_ones(tmp_path, capsys):
    """Without --valid, what was for validation is for training again: it would be in both."""
    write_archive(tmp_path / "c/a-train-000000.tar", few(TRAIN, 6))
    manifest(tmp_path / "c", tmp_path / "out", "--valid", "0.3")
    before = (tmp_path / "out/train.tsv").read_bytes()
    with pytest.raises(SystemExit):
        manifest(tmp_path / "c", tmp_path / "out")
    assert "lists ['valid'] of another corpus or --valid" in capsys.readouterr().err
    assert (tmp_path / "out/train.tsv").read_bytes() == before
    manifest(tmp_path / "c", tmp_path / "out", "--split", "train")


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    write_archive(tmp_path / "c/a-train-000000.tar", few(TRAIN, 3))
    manifest(tmp_path / "c", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("train.*")}
    (kept,) = (tmp_path / "out/lengths").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(measure, "probe", None)
        manifest(tmp_path / "c", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("train.*")} == before
    kept.write_text("[1,\n")  # a damaged one is made again
    manifest(tmp_path / "c", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("train.*")} == before
    samples = read_archive(tmp_path / "c/a-train-000000.tar")
    write_archive(tmp_path / "c/a-train-000000.tar", dict(list(samples.items())[:2]))  # and so is one of other files
    manifest(tmp_path / "c", tmp_path / "out")
    assert len(read_manifest(tmp_path / "out", "train")) == 2
