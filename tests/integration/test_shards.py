"""What the shards hold, against the encoder run on each clip alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from odd_folders import ODD
from small_corpus import WIDTH, heard_as
from small_shards import (
    FRAMES,
    alone,
    options,
    prepare,
    read,
    refused,
)

from viavsp_jax.data import media, noise, records
from viavsp_jax.data.lost import LostVideo
from viavsp_jax.data.wild import Wild
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.features.reading import Noise, Talkers
from viavsp_jax.prepare.manifest_files import read_manifest


def test_records_hold_what_the_encoder_gives_for_each_clip_alone(prepared, tmp_path):
    main(options(prepared, tmp_path, "--modalities", "av", "audio", "video", "--num_shards", "2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio_clean", "av_clean", "video_clean"]
    different = set()
    for modality in ("av", "audio", "video"):
        for split in FRAMES:
            found = read(tmp_path / f"{modality}_clean", split)
            clips = read_manifest(prepared / "manifest", split)
            assert found.keys() == {clip.id for clip in clips}
            for clip, num_frames in zip(clips, FRAMES[split], strict=True):
                features, counts = alone(prepared, clip, modality, media.read_audio(clip.audio))
                example = found[clip.id]
                assert example["features"].shape == (num_frames, WIDTH)
                np.testing.assert_allclose(example["features"], features, atol=2e-3)
                assert example["cluster_counts"].tolist() == counts
                assert example["transcript"] == clip.transcript
                assert (example["source_language"], example["target_language"]) == ("vi", "vi")
                different.add((clip.id, *counts))
    assert len(different) > 15, "the modalities have counts of their own"


def test_an_encoder_that_hears_floats(prepared, tmp_path):
    encoder = heard_as(prepared / "encoder", "float", tmp_path / "encoder")
    main(options(prepared, tmp_path / "out", "--modalities", "audio", "--split", "test", encoder=encoder))
    found = read(tmp_path / "out" / "audio_clean", "test")
    for clip in read_manifest(prepared / "manifest", "test"):
        as_floats, as_int16 = (
            alone(prepared, clip, "audio", media.read_audio(clip.audio), waveform=name)[0]
            for name in ("float", "int16")
        )
        np.testing.assert_allclose(found[clip.id]["features"], as_floats, atol=2e-3)
        assert np.abs(as_floats - as_int16).max() > 0.05


def test_lists_are_in_manifest_order(prepared, tmp_path):
    main(options(prepared, tmp_path, "--num_shards", "2"))
    folder = tmp_path / "av_clean"
    for split in FRAMES:
        for kind in ("tsv", "wrd"):
            assert (folder / f"{split}.{kind}").read_text() == (prepared / f"manifest/{split}.{kind}").read_text()
        found = read(folder, split)
        lines = (folder / f"{split}.cluster_counts").read_text().splitlines()
        for clip, line in zip(read_manifest(folder, split), lines, strict=True):
            assert line == " ".join(map(str, found[clip.id]["cluster_counts"]))
    assert records.complete_splits(folder) == {"test": 2, "train": 2}


def test_workers_and_batches_change_nothing(prepared, tmp_path):
    main(options(prepared, tmp_path / "a", "--split", "train"))
    main(options(prepared, tmp_path / "b", "--split", "train", "--workers", "2", "--batch_size", "100"))
    ours, theirs = read(tmp_path / "a/av_clean", "train"), read(tmp_path / "b/av_clean", "train")
    for name in ours:
        np.testing.assert_allclose(ours[name]["features"], theirs[name]["features"], atol=2e-3)
        np.testing.assert_array_equal(ours[name]["cluster_counts"], theirs[name]["cluster_counts"])
    assert [e["id"] for e in records.open_split(tmp_path / "a/av_clean", "train")][:2] == [
        "train-001",
        "train-004",
    ]


def test_clips_that_cannot_be_read_are_skipped_and_listed(tmp_path, caplog, capsys):
    folder = tmp_path = prepare(tmp_path / ODD)
    main(options(folder, tmp_path / "good", "--modalities", "av", "audio"))
    clips = read_manifest(folder / "manifest", "train")
    Path(clips[1].video).write_bytes(b"no video at all")
    Path(clips[5].audio).unlink()
    caplog.set_level("INFO")
    main(options(folder, tmp_path / "out", "--modalities", "av", "audio"))
    for name in ("av_clean", "audio_clean"):
        good, found = read(tmp_path / "good" / name, "train"), read(tmp_path / "out" / name, "train")
        assert good.keys() - found.keys() == {"train-001", "train-005"}
        for id, example in found.items():
            assert example["features"].tobytes() == good[id]["features"].tobytes()
            assert example["cluster_counts"].tobytes() == good[id]["cluster_counts"].tobytes()
        lines = (tmp_path / "out" / name / "skipped.jsonl").read_text().splitlines()
        skipped = {entry["id"]: entry for entry in map(json.loads, lines)}
        assert skipped.keys() == {"train-001", "train-005"}
        assert skipped["train-001"]["split"] == "train" and clips[1].video in skipped["train-001"]["reason"]
        assert clips[5].audio in skipped["train-005"]["reason"]
        listed = [clip.id for clip in read_manifest(tmp_path / "out" / name, "train")]
        assert listed == [clip.id for clip in clips if clip.id in found]
        counts = (tmp_path / "out" / name / "train.cluster_counts").read_text().splitlines()
        assert counts == [" ".join(map(str, found[id]["cluster_counts"])) for id in listed]
        assert f"{tmp_path / 'out' / name}: split train: 5 clips, 2 skipped, see " in caplog.text
        assert f"{tmp_path / 'out' / name}: split test: 3 clips, 0 skipped" in caplog.text

    for clip in clips:
        Path(clip.video).unlink(missing_ok=True)
    message = refused(capsys, options(folder, tmp_path / "none", "--modalities", "audio"))
    assert "none of its 7 clips could be read, the first: " in message and clips[0].video in message
    assert not list((tmp_path / "none/audio_clean").glob("*array_record*"))


def test_babble_is_mixed_at_the_ratio_by_id_and_seed(prepared):
    clips = read_manifest(prepared / "manifest", "train")
    speech = media.read_audio(clips[2].audio)

    def babble(clips, snr_db, seed, clip):
        added = Noise(Talkers(clips, len(clips)), snr_db, seed)
        noisy = added.add(clip, speech)
        np.testing.assert_array_equal(added.for_clips([clip]).add(clip, speech), noisy)
        return noisy

    noisy = babble(clips, 0.0, 1, clips[2])
    assert noisy.dtype == np.int16 and noisy.shape == speech.shape
    added = noisy.astype(float) - speech
    assert 10 * np.log10((speech.astype(float) ** 2).mean() / (added**2).mean()) == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(babble(clips, 0.0, 1, clips[2]), noisy)
    assert (babble(clips, 0.0, 2, clips[2]) != noisy).any()
    assert (babble(clips, 0.0, 1, clips[3]) != noisy).any()
    quiet = babble(clips, 20.0, 1, clips[2]).astype(float) - speech
    np.testing.assert_allclose(quiet, added / 10, atol=1.1)  # of int16 steps
    # It does not hear itself: with only one other clip, that one is the noise, turned and scaled.
    pair = [clips[2], clips[4]]
    added = babble(pair, 0.0, 1, clips[2]).astype(float) - speech
    rng = noise.rng_for(clips[2].id, 1)
    rng.choice(2, size=2, replace=False)
    other = noise.babble([media.read_audio(clips[4].audio)], len(speech), rng).astype(float)
    assert np.corrcoef(added, other)[0, 1] > 0.999


def test_noise_changes_what_is_heard_and_only_that(prepared, tmp_path):
    more = [
        "--modalities",
        "av",
        "audio",
        "--noise",
        "babble",
        "--snr",
        "-5",
        "--seed",
        "3",
        "--split",
        "test",
    ]
    main(options(prepared, tmp_path, *more, "--num_shards", "3"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio_babble_-5db", "av_babble_-5db"]
    clips = read_manifest(prepared / "manifest", "test")
    for modality in ("av", "audio"):
        found = read(tmp_path / f"{modality}_babble_-5db", "test")
        for clip in clips:
            samples = Noise(Talkers(clips, len(clips)), -5.0, 3).add(clip, media.read_audio(clip.audio))
            features, counts = alone(prepared, clip, modality, samples)
            np.testing.assert_allclose(found[clip.id]["features"], features, atol=2e-3)
            assert found[clip.id]["cluster_counts"].tolist() == counts
            clean, _ = alone(prepared, clip, modality, media.read_audio(clip.audio))
            assert np.abs(found[clip.id]["features"] - clean).max() > 0.05


def test_a_few_who_interrupt(prepared, tmp_path, capsys):
    """A folder of its own; one of the usual eight is as before, without a word about them."""
    babble = ["--noise", "babble", "--snr", "0", "--split", "test"]
    main(options(prepared, tmp_path, *babble))
    main(options(prepared, tmp_path, *babble, "--talkers", "1", "--workers", "1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["av_babble1_0db", "av_babble_0db"]
    clips = read_manifest(prepared / "manifest", "test")
    for clip in clips:
        samples = Noise(Talkers(clips, len(clips)), 0.0, 0, talkers=1).add(clip, media.read_audio(clip.audio))
        features, counts = alone(prepared, clip, "av", samples)
        example = read(tmp_path / "av_babble1_0db", "test")[clip.id]
        np.testing.assert_allclose(example["features"], features, atol=2e-3)
        assert example["cluster_counts"].tolist() == counts
        assert np.abs(example["features"] - read(tmp_path / "av_babble_0db", "test")[clip.id]["features"]).max() > 0.05
    eight, one = (json.loads((tmp_path / name / "provenance.json").read_text())["noise"] for name in
                  ("av_babble_0db", "av_babble1_0db"))  # fmt: skip
    assert eight == {"kind": "babble", "snr_db": 0.0, "seed": 0} and one == eight | {"talkers": 1}


def test_clips_with_other_ends(prepared, tmp_path, capsys):
    """Are encoded as they are then: other lengths, other counts; a folder of its own, which remembers how far."""
    main(options(prepared, tmp_path, "--modalities", "av", "audio", "--wild", "0.4", "--seed", "3"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio_wild", "av_wild"]
    lengths = {}
    for modality in ("av", "audio"):
        found = read(tmp_path / f"{modality}_wild", "train")
        for clip in read_manifest(prepared / "manifest", "train"):
            frames, samples = Wild(10, 3).change(clip.id, media.read_video(clip.video), media.read_audio(clip.audio))
            features, counts = alone(prepared, clip, modality, samples, frames)
            np.testing.assert_allclose(found[clip.id]["features"], features, atol=2e-3)
            assert found[clip.id]["cluster_counts"].tolist() == counts
            lengths[clip.id] = len(frames) - clip.num_frames
    assert len(set(lengths.values())) > 3 and max(lengths.values()) <= 20
    message = refused(capsys, options(prepared, tmp_path, "--modalities", "av", "audio", "--wild", "0.8"))
    assert "wild" in message and "av_wild" in message


def test_clips_of_which_a_share_is_not_seen(prepared, tmp_path, capsys):
    """By either policy: a folder of its own, which remembers the seed; with noise and other ends, too."""
    more = ["--split", "train", "--lost_video", "0.4"]
    main(options(prepared, tmp_path, *more, "--modalities", "av", "video", "--seed", "3"))
    main(options(prepared, tmp_path, *more, "--lost_policy", "held"))
    main(options(prepared, tmp_path, *more, "--wild", "0.4", "--noise", "babble", "--snr", "0"))
    names = ["av_babble_0db_wild_lost40", "av_lost40", "av_lost40held", "video_lost40"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    clips = read_manifest(prepared / "manifest", "train")
    for clip in clips:
        frames, samples = media.read_video(clip.video), media.read_audio(clip.audio)
        changed = Wild(10, 0).change(clip.id, frames, samples)
        noisy = Noise(Talkers(clips, len(clips)), 0.0, 0).add(clip, changed[1])
        held, shown = LostVideo(40, "held").lose(clip.id, frames)
        for name, pictures, heard, seen in (
            ("av_lost40", frames, samples, LostVideo(40, "zeros", 3).seen(clip.id, len(frames))),
            ("video_lost40", frames, samples, LostVideo(40, "zeros", 3).seen(clip.id, len(frames))),
            ("av_lost40held", held, samples, shown),
            ("av_babble_0db_wild_lost40", changed[0], noisy, LostVideo(40, "zeros").seen(clip.id, len(changed[0]))),
        ):
            features, counts = alone(prepared, clip, name.split("_")[0], heard, pictures, seen)
            example = read(tmp_path / name, "train")[clip.id]
            np.testing.assert_allclose(example["features"], features, atol=2e-3)
            assert example["cluster_counts"].tolist() == counts
    message = refused(capsys, options(prepared, tmp_path, *more, "--seed", "4"))
    assert "lost_video" in message and "av_lost40" in message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close(prepared, tmp_path, dtype):
    main(options(prepared, tmp_path, "--split", "test", "--dtype", dtype))
    for clip in read_manifest(prepared / "manifest", "test"):
        features, _ = alone(prepared, clip, "av", media.read_audio(clip.audio))
        found = read(tmp_path / "av_clean", "test")[clip.id]["features"]
        assert 1e-5 < np.abs(found - features).max() < (0.02 if dtype == "float16" else 0.15)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--noise", "babble"], "--noise and --snr go together"),
        (["--snr", "0"], "--noise and --snr go together"),
        (["--noise", "babble", "--snr", "0", "--modalities", "video"], "leave video out"),
        (["--noise", "babble", "--snr", "nan"], "--snr is nan, expected a number at least -100 and at most 100"),
        (["--talkers", "2"], "--talkers is 2, which goes with --noise babble"),
        (["--noise", "babble", "--snr", "0", "--talkers", "0"], "--talkers is 0, expected a whole number at least 1"),
        (["--wild", "0"], "--wild is 0, expected a number at least 0.04"),
        (["--lost_video", "0"], "--lost_video is 0, expected a number at least 0.01 and at most 1"),
        (["--lost_video", "25"], "--lost_video is 25, expected a number at least 0.01 and at most 1"),
        (["--lost_policy", "held"], "--lost_policy goes with --lost_video"),
        (["--lost_video", "0.5", "--kind", "media"], "--lost_video goes with --kind features"),
        (["--lost_video", "0.5", "--modalities", "av", "audio"], "leave audio out of --modalities"),
        (["--wild", "1", "--kind", "both"], "--wild goes with --kind features"),
        (["--workers", "-1"], "--workers is -1"),
        (["--num_shards", "0"], "--num_shards is 0"),
        (["--num_shards", "2", "--shard_index", "2"], "--shard_index is 2, expected 0 to 1"),
        (["--shard_index", "-1"], "--shard_index is -1"),
        (["--split", "dev"], "dev.tsv: no such file"),
        (["--manifest", "/nowhere"], "/nowhere: has no {split}.tsv"),
        (["--kmeans", "/nowhere"], "/nowhere: no such file"),
        (["--encoder", "/nowhere"], "/nowhere/config.json: no such file"),
        (["--device", "cuda:99"], "--device cuda:99 is not usable here"),
    ],
)
def test_unusable_options_are_named(prepared, tmp_path, capsys, more, words):
    assert words in refused(capsys, options(prepared, tmp_path, *more))
    assert not list(tmp_path.iterdir())


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in ("demo", "manifest", "kmeans", "shards"))
    for stage, option in (("demo", "--num_train"), ("manifest", "--frac"), ("kmeans", "--fraction")):
        with pytest.raises(SystemExit):
            main([stage, "--help"])
        assert option in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["shred"])
    assert caught.value.code == 2
