"""The demo corpus on disk: the same for any number of worker processes, completed after a stop, and as described."""

import json
import wave
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.demo import corpus
from viavsp_jax.prepare.demo.corpus import plan_clips, plan_corpus, render_clip, write_corpus
from viavsp_jax.prepare.demo.sentences import split_of
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.recordings.clip import read_clip
from viavsp_jax.runtime.errors import InputError


def test_clips_in_memory_are_the_same_for_any_number_of_workers():
    alone = list(corpus.synthesize_clips(3, 3, "pretrain", workers=1))
    shared = list(corpus.synthesize_clips(3, 3, "pretrain", workers=2))
    for a, b in zip(alone, shared, strict=True):
        assert a.transcript == b.transcript
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.samples, b.samples)


SIZES = ["--num_train", "6", "--num_valid", "3", "--num_test", "3"]


def media(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.*")) if p.is_file()}


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root, plan_corpus(root, num_train=6, num_valid=3, num_test=3, seed=0), workers=2)
    return root


def test_layout_of_the_corpus(small_corpus):
    table = pd.read_parquet(small_corpus / "metadata.parquet")
    assert list(table.columns) == [
        "id", "shard", "fps", "sampling_rate", "transcript", "video_num_frames", "audio_num_frames", "split",
    ]  # fmt: skip
    assert table["split"].value_counts().to_dict() == {"train": 6, "valid": 3, "test": 3}
    assert table["id"].is_unique and len(list(small_corpus.rglob("*.mp4"))) == 12
    mapping = json.loads((small_corpus / "mapping.json").read_text())
    assert [entry["id"] for entry in mapping] == list(table["id"])
    assert all(set(entry) == {"id", "shard", "split", "channel", "topic"} for entry in mapping)
    assert all(entry["id"].startswith(entry["channel"] + "_") for entry in mapping)

    starts = {"train": 0, "valid": 6, "test": 9}
    clips = {c.id: c for split, start in starts.items() for c in plan_clips(0, 6, split, start)}
    for row in table.itertuples():
        assert split_of(row.transcript) == row.split
        video = cv2.VideoCapture(str(small_corpus / "visual" / row.shard / f"{row.id}.mp4"))
        assert video.get(cv2.CAP_PROP_FPS) == row.fps == 25
        frames = []
        while (frame := video.read()[1]) is not None:
            frames.append(frame)
        with wave.open(str(small_corpus / "audio" / row.shard / f"{row.id}.wav")) as audio:
            assert audio.getparams()[:3] == (1, 2, row.sampling_rate) == (1, 2, 16_000)
            samples = np.frombuffer(audio.readframes(audio.getnframes()), np.int16)
        assert len(frames) == row.video_num_frames
        assert len(samples) == row.audio_num_frames == 640 * len(frames)
        expected = render_clip(clips[row.id])
        np.testing.assert_array_equal(samples, expected.samples)
        assert np.mean(np.abs(np.stack(frames).astype(int) - expected.frames)) < 6  # what the codec loses


def test_a_stopped_corpus_is_completed_and_a_finished_one_left_alone(small_corpus, tmp_path):
    before = media(small_corpus)
    assert "metadata.parquet" in before
    stamps = {path: (small_corpus / path).stat().st_mtime_ns for path in before}
    write_corpus(small_corpus, plan_corpus(small_corpus, 6, 3, 3, seed=0), workers=1)
    assert stamps == {path: (small_corpus / path).stat().st_mtime_ns for path in before}

    for path, content in before.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / "metadata.parquet").unlink()
    for suffix in ("mp4", "wav"):
        sorted(tmp_path.rglob(f"*.{suffix}"))[2].unlink()
    write_corpus(tmp_path, plan_corpus(tmp_path, 6, 3, 3, seed=0), workers=1)
    assert media(tmp_path) == before

    with pytest.raises(InputError, match="num_train"):
        plan_corpus(tmp_path, 7, 3, 3, seed=0)
    with pytest.raises(InputError, match="webdataset"):
        plan_corpus(tmp_path, 6, 3, 3, seed=0, layout="webdataset")


def test_the_same_clips_as_tar_archives(small_corpus, tmp_path):
    """Of ViCocktail's layout, with the sound in the video; the manifest stage reads what was rendered."""
    for _ in range(2):  # the second time nothing is left to do
        main(["demo", "--output", str(tmp_path), "--layout", "webdataset", "--workers", "2", *SIZES])
    files = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert files == [f"demo-{split}-000000.tar" for split in ("test", "train", "valid")]
    main(["manifest", "--data", str(tmp_path), "--output", str(tmp_path / "manifest"), "--workers", "0"])
    main(["manifest", "--data", str(small_corpus), "--output", str(tmp_path / "plain")])
    for split in ("train", "valid", "test"):
        clips, plain = (read_manifest(tmp_path / name, split) for name in ("manifest", "plain"))
        assert [clip.transcript for clip in clips] == [clip.transcript for clip in plain]
        for clip, other in zip(clips, plain, strict=True):
            assert clip.id.startswith(other.id.split("_")[0]) and clip.num_frames == other.num_frames
            read, expected = read_clip(clip.video, clip.audio), read_clip(other.video, other.audio)
            difference = read.samples[: len(expected.samples)] - expected.samples.astype(float)
            assert np.square(difference).mean() < 0.01 * np.square(expected.samples.astype(float)).mean()
            assert np.abs(read.frames - expected.frames.astype(int)).mean() < 6  # by two codecs
