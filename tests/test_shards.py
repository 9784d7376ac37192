import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_corpus import LAYERS, WIDTH, write_corpus, write_encoder

from viavsp_jax.data import records
from viavsp_jax.prepare import extract, kmeans, media, noise
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.avhubert_torch import load_encoder
from viavsp_jax.prepare.manifest import Clip, read_manifest

LAYER = 2
FRAMES = {"train": [7, 12, 5, 9, 12, 8, 6], "test": [6, 10, 4]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus, its manifest, an encoder and centres; read only."""
    return prepare(tmp_path_factory.mktemp("prepared"))


def prepare(folder: Path) -> Path:
    torch.set_num_threads(1)
    write_corpus(folder / "corpus", FRAMES)
    main(["manifest", "--data", str(folder / "corpus"), "--output", str(folder / "manifest")])
    write_encoder(folder / "encoder")
    main(
        [
            "kmeans",
            "--manifest",
            str(folder / "manifest"),
            "--encoder",
            str(folder / "encoder"),
            "--workers",
            "0",
        ]
        + [
            "--output",
            str(folder / "kmeans"),
            "--layer",
            str(LAYER),
            "--num_clusters",
            "7",
            "--device",
            "cpu",
        ]
    )
    return folder


def options(folder: Path, output: Path, *more: str, **paths: Path) -> list[str]:
    paths = {name: folder / name for name in ("manifest", "encoder", "kmeans")} | {"output": output} | paths
    inputs = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    return ["shards", *inputs, "--device", "cpu", "--workers", "0", "--batch_size", "3", *more]


def refused(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def read(folder: Path, split: str) -> dict[str, dict]:
    return {example["id"]: example for example in records.open_split(folder, split)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_datasets(ours: Path, theirs: Path) -> None:
    """The same files, but that the fields of a record may be stored in another order."""
    found, expected = contents(ours), contents(theirs)
    leftovers = [name for name in found if name.endswith(".tmp")]
    assert not [name for name in leftovers if "array_record" in name]
    assert found.keys() - set(leftovers) == expected.keys()
    for name in expected:
        if "array_record" not in name:
            assert found[name] == expected[name], name
    for info in theirs.rglob("dataset_info.json"):
        folder = info.parent.relative_to(theirs)
        for split in FRAMES:
            pairs = zip(
                records.open_split(ours / folder, split),
                records.open_split(theirs / folder, split),
                strict=True,
            )
            for left, right in pairs:
                assert left.keys() == right.keys()
                assert all(np.array_equal(left[name], right[name]) for name in left)


def identity(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_ino


@functools.cache
def encoder_and_centers(folder: Path) -> tuple[torch.nn.Module, np.ndarray]:
    return load_encoder(folder / "encoder"), kmeans.load_centers(str(folder / "kmeans"))[0]


def alone(folder: Path, clip: Clip, modality: str, samples: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Features float32[T, D] and run lengths of one clip, without batches, padding or the stage's code."""
    model, centers = encoder_and_centers(folder)
    frames = media.read_video(clip.video)
    with torch.inference_mode():
        audio = torch.from_numpy(media.audio_features(samples, len(frames)))[None]
        heard = None if modality == "video" else model.audio_features(audio)
        seen = None if modality == "audio" else model.video_features(torch.from_numpy(media.video_input(frames))[None])
        layer, final = model.encode(heard, seen, None, LAYER)
    labels = np.linalg.norm(layer[0, :, None].double() - torch.from_numpy(centers), axis=2).argmin(1)
    counts = [len(list(run)) for _, run in itertools.groupby(labels.tolist())]
    return final[0].numpy(), counts


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


def test_a_killed_run_goes_on_where_it_was(prepared, tmp_path):
    """kill -9 on a real run when its first shard is there."""
    more = ["--modalities", "av", "audio", "--num_shards", "4"]
    main(options(prepared, tmp_path / "whole", *more))
    command = [sys.executable, "-m", "viavsp_jax.prepare", *options(prepared, tmp_path / "out", *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, start_new_session=True, env=environment, stderr=subprocess.DEVNULL)
    first = [records.shard_path(tmp_path / "out" / f"{name}_clean", "train", 0, 4) for name in ("av", "audio")]
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in first) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    finished = {path: identity(path) for path in (tmp_path / "out").rglob("viavsp-*")}
    assert {Path(path) for path in first} <= finished.keys() and len(finished) < 14
    assert not (tmp_path / "out/av_clean/dataset_info.json").exists()

    main(options(prepared, tmp_path / "out", *more))
    assert {path: identity(path) for path in finished} == finished
    assert_same_datasets(tmp_path / "out", tmp_path / "whole")


def test_only_the_modality_that_is_missing_is_done_again(prepared, tmp_path):
    more = ["--modalities", "av", "audio", "--split", "train"]
    main(options(prepared, tmp_path, *more))
    before = contents(tmp_path)
    kept, lost = (Path(records.shard_path(tmp_path / f"{name}_clean", "train", 0, 1)) for name in ("av", "audio"))
    kept_identity = identity(kept)
    lost.unlink()
    stale = lost.with_name(f".{lost.name}.abc.tmp")
    stale.write_bytes(b"left by a killed run")
    main(options(prepared, tmp_path, *more))
    assert identity(kept) == kept_identity
    assert contents(tmp_path) == before


def test_shards_may_be_written_by_several_processes(prepared, tmp_path, caplog):
    caplog.set_level("INFO")
    main(options(prepared, tmp_path / "whole", "--num_shards", "5"))
    for index in (3, 0, 4, 2):
        main(options(prepared, tmp_path / "parts", "--num_shards", "5", "--shard_index", str(index)))
    folder = tmp_path / "parts/av_clean"
    assert "split train: other shards are still missing" in caplog.text
    assert not (folder / "dataset_info.json").exists() and not (folder / "train.tsv").exists()
    main(options(prepared, tmp_path / "parts", "--num_shards", "5", "--shard_index", "1"))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert records.complete_splits(folder) == {"test": 3, "train": 5}, "at most one shard a clip"


def test_metadata_is_there_as_soon_as_one_split_is(prepared, tmp_path):
    main(options(prepared, tmp_path, "--split", "test"))
    assert len(read(tmp_path / "av_clean", "test")) == 3
    main(options(prepared, tmp_path, "--split", "train", "--num_shards", "2", "--shard_index", "0"))
    assert len(read(tmp_path / "av_clean", "test")) == 3
    main(options(prepared, tmp_path, "--split", "train", "--num_shards", "2"))
    assert (len(read(tmp_path / "av_clean", "test")), len(read(tmp_path / "av_clean", "train"))) == (3, 7)


def test_clips_that_cannot_be_read_are_skipped_and_listed(tmp_path, caplog, capsys):
    folder = prepare(tmp_path)
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
    noisy = extract.Babble(clips, 0.0, seed=1).add(clips[2], speech)
    assert noisy.dtype == np.int16 and noisy.shape == speech.shape
    added = noisy.astype(float) - speech
    assert 10 * np.log10((speech.astype(float) ** 2).mean() / (added**2).mean()) == pytest.approx(0, abs=0.01)
    np.testing.assert_array_equal(extract.Babble(clips, 0.0, seed=1).add(clips[2], speech), noisy)
    assert (extract.Babble(clips, 0.0, seed=2).add(clips[2], speech) != noisy).any()
    assert (extract.Babble(clips, 0.0, seed=1).add(clips[3], speech) != noisy).any()
    quiet = extract.Babble(clips, 20.0, seed=1).add(clips[2], speech).astype(float) - speech
    np.testing.assert_allclose(quiet, added / 10, atol=1.1)  # of int16 steps
    # It does not hear itself: with only one other clip, that one is the noise, turned and scaled.
    pair = [clips[2], clips[4]]
    added = extract.Babble(pair, 0.0, seed=1).add(clips[2], speech).astype(float) - speech
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
            samples = extract.Babble(clips, -5.0, 3).add(clip, media.read_audio(clip.audio))
            features, counts = alone(prepared, clip, modality, samples)
            np.testing.assert_allclose(found[clip.id]["features"], features, atol=2e-3)
            assert found[clip.id]["cluster_counts"].tolist() == counts
            clean, _ = alone(prepared, clip, modality, media.read_audio(clip.audio))
            assert np.abs(found[clip.id]["features"] - clean).max() > 0.05


def test_shards_of_other_settings_are_refused(prepared, tmp_path, capsys):
    out = tmp_path / "out"
    main(options(prepared, out, "--num_shards", "2", "--split", "test"))
    before = contents(out)

    def message(*more: str, **paths: Path) -> str:
        return refused(capsys, options(prepared, out, *more, **paths))

    two = ("--num_shards", "2", "--split", "test")
    assert "provenance.json: the shards of split 'test' there were made with another num_shards (2)" in message(
        "--num_shards", "3", "--split", "test"
    )
    write_encoder(tmp_path / "encoder", seed=1)
    assert "provenance.json: the shards there were made with another encoder" in message(
        *two, encoder=tmp_path / "encoder"
    )
    centers, _ = kmeans.load_centers(str(prepared / "kmeans"))
    kmeans.save_centers(tmp_path / "k", centers + 1, {"layer": LAYER, "seed": 0, "num_frames": 1})
    assert "another kmeans" in message(*two, kmeans=tmp_path / "k")
    assert "another dtype (float32) than asked for now (bfloat16)" in message(*two, "--dtype", "bfloat16")
    (tmp_path / "manifest").mkdir()
    for file in (prepared / "manifest").iterdir():
        (tmp_path / "manifest" / file.name).write_text(file.read_text().replace("số", "thứ"))
    assert "of split 'test' there were made with another manifest" in message(*two, manifest=tmp_path / "manifest")
    assert contents(out) == before

    noisy = ("--noise", "babble", "--snr", "0", "--split", "test")
    main(options(prepared, out, *noisy))
    assert "another noise ({'kind': 'babble', 'snr_db': 0.0, 'seed': 0})" in message(*noisy, "--seed", "1")
    main(options(prepared, out, *two, "--seed", "1"))  # without noise the seed decides nothing
    main(options(prepared, out, "--num_shards", "3", "--split", "train"))  # another split has shards of its own


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


def test_centres_must_fit_the_encoder(prepared, tmp_path, capsys):
    for shape, layer in (((3, WIDTH + 1), 1), ((3, WIDTH), LAYERS + 1)):
        kmeans.save_centers(tmp_path / "k", np.ones(shape, np.float32), {"layer": layer, "seed": 0, "num_frames": 9})
        message = refused(capsys, options(prepared, tmp_path / "out", kmeans=tmp_path / "k"))
        assert f"has centres of layer {layer}, width {shape[1]}, expected a layer up to {LAYERS}" in message


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in ("demo", "manifest", "kmeans", "shards"))
    for stage, option in (("demo", "--num_train"), ("manifest", "--frac"), ("kmeans", "--percent")):
        with pytest.raises(SystemExit):
            main([stage, "--help"])
        assert option in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["shred"])
    assert caught.value.code == 2
