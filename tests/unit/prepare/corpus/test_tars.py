"""Archives of ViCocktail's layout, as recorded and with what goes wrong in such files."""

import io
import json
import tarfile

import numpy as np
import pytest
from open_corpus import ARCHIVES, NOISY, TEST, TRAIN, encoded_as, few, read_archive, write_archive
from places import GOLDEN_OPEN

from viavsp_jax.prepare import measure
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.corpus.entries import split_in, split_of_folders
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.recordings.clip import read_clip
from viavsp_jax.prepare.skipped import read_skipped
from viavsp_jax.runtime.errors import InputError

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
        ("avvn-test_snr_0_interferer_1-000000 (1)", "test_snr_0_interferer_1"),
        ("dev_00001-of-00003", "valid"),
        ("avvn-test_far-000000", "test_far"),
        *((name, "valid") for name in ("valid-0", "val_01", "dev-clean-000000", "validation-00000-000123", "my_dev")),
        *((name, "test") for name in ("test-01", "test-clean-000", "test-shard-0001", "partial-test", "test.other-1")),
        *((name, "train") for name in ("train", "TRAIN-1", "train_test_split-train-000")),
        *((name, None) for name in ("000000", "lrs3-pretrained-0001", "my_test_data_train-000", "heldout-000")),
    ],
)
def test_the_split_is_in_the_name(name, split):
    assert split_in(name) == split


def test_folders_tell_splits_too():
    assert split_of_folders("c/valid_clips/a/x.mp4") == "valid"
    assert split_of_folders("c/train/test_clips/x.mp4") == "test"
    assert split_of_folders("test/a/x.mp4") == "test"
    assert split_of_folders("c/test_snr_n5_interferer_1/x.mp4") == "test_snr_-5_interferer_1"
    assert split_of_folders("c/a/x.mp4") is None


def test_where_some_names_tell_splits_all_are_to(tmp_path, capsys):
    """Else what was to be tested with might be trained with."""
    for name in ("a-train-000", "a-heldout-000"):
        write_archive(tmp_path / f"c/{name}.tar", few(TRAIN, 2))
    with pytest.raises(SystemExit):
        manifest(tmp_path / "c", tmp_path / "out")
    message = capsys.readouterr().err
    assert "a-heldout-000.tar" in message and "nothing tells its split" in message and "others are of train" in message


def test_keys_that_begin_anew_in_each_archive(tmp_path):
    for name in ("train-000", "train-001", "test-000"):
        samples = {key: {"video": one["video"], "label": one["label"]} for key, one in few(TRAIN, 2).items()}
        write_archive(tmp_path / f"c/{name}.tar", samples)
    manifest(tmp_path / "c", tmp_path / "out")
    assert [clip.id for clip in read_manifest(tmp_path / "out", "train")] == [
        f"train-00{archive}.tar_0000000{key}" for archive in range(2) for key in range(2)
    ]
    assert len(read_manifest(tmp_path / "out", "test")) == 2


def test_keys_with_dots_in_them(tmp_path):
    """Others write them; of what webdataset takes for one suffix, nothing is known."""
    (key, sample), *_ = few(TRAIN, 1).items()
    del sample["sample_id"]
    write_archive(tmp_path / "c/train-000.tar", {"kênh.01.abc": sample, key: sample | {"meta.json": b"{}"}})
    manifest(tmp_path / "c", tmp_path / "out")
    assert [clip.id for clip in read_manifest(tmp_path / "out", "train")] == ["kênh.01.abc", key]
    assert not (tmp_path / "out/skipped.jsonl").exists()


def test_what_is_behind_a_damaged_block_is_missed(tmp_path):
    path = write_archive(tmp_path / "c/train-000.tar", few(TRAIN, 4))
    content = bytearray(path.read_bytes())
    at = content.index(b"00000002.video")
    content[at : at + 512] = b"\xff" * 512
    path.write_bytes(content)
    manifest(tmp_path / "c", tmp_path / "out")
    assert len(read_manifest(tmp_path / "out", "train")) == 2
    reasons = [line["reason"] for line in read_skipped(tmp_path / "out")]
    assert any("unreadable archive" in reason and f"at byte {at:,}" in reason for reason in reasons)
    other = write_archive(tmp_path / "other.tar", few(TEST, 1)).read_bytes()
    write_archive(path, few(TRAIN, 1)).write_bytes(path.read_bytes() + other)  # as cat a.tar b.tar
    manifest(tmp_path / "c", tmp_path / "again")
    (line,) = read_skipped(tmp_path / "again")
    assert "another archive was appended" in line["reason"]


def test_a_member_that_is_there_twice_makes_no_clip_of_two(tmp_path):
    samples = few(TRAIN, 3)
    first, second, _ = samples
    path = tmp_path / "c/train-000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for key, suffix in (
            (first, "video"),
            (first, "label"),
            (first, "video"),
            (first, "txt"),
            (second, "video"),
            (second, "label"),
        ):
            content = samples[key].get(suffix, b"other text")
            member = tarfile.TarInfo(f"./{key}.{suffix}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    manifest(tmp_path / "c", tmp_path / "out")
    (line,) = read_skipped(tmp_path / "out")
    assert line["id"] == first and "repeated member" in line["reason"]
    assert [clip.id for clip in read_manifest(tmp_path / "out", "train")] == [second]


def test_an_archive_that_was_replaced_is_not_read_by_the_old_places(tmp_path):
    write_archive(tmp_path / "c/train-000.tar", few(TRAIN, 3))
    manifest(tmp_path / "c", tmp_path / "out")
    clips = read_manifest(tmp_path / "out", "train")
    samples = few(TRAIN, 4)
    write_archive(tmp_path / "c/train-000.tar", dict(list(samples.items())[1:]))
    for clip in clips:
        with pytest.raises(InputError, match="the archive has changed since the manifest was made"):
            read_clip(clip.video, clip.audio)


def test_archives_that_are_not_there_or_compressed(tmp_path):
    write_archive(tmp_path / "elsewhere/train-000.tar", few(TRAIN, 1))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/linked").symlink_to("../elsewhere")
    (tmp_path / "c/loop").symlink_to("../c")
    (tmp_path / "c/train-001.tar").symlink_to("nowhere")
    (tmp_path / "c/train-002.tar.gz").write_bytes(b"\x1f\x8b")
    manifest(tmp_path / "c", tmp_path / "out")
    assert len(read_manifest(tmp_path / "out", "train")) == 1
    (line,) = read_skipped(tmp_path / "out")
    assert "train-002.tar.gz" in line["reason"] and "without compression" in line["reason"]


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
