"""Other speech positions from shards to text: by JAX and by PyTorch the same, with and without K-Means."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest
from demo_run import DEMO_ENCODER
from small_media import media_config
from transformers import AutoModel

from configs import demo
from convert import decode_hf, to_hf, to_reference
from viavsp_jax import evaluate, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import media, records
from viavsp_jax.data.compression import Compression
from viavsp_jax.data.examples import MEDIA
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.prepare.__main__ import main as prepare
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.settings import completed
from viavsp_jax.transcribe import Clip, Transcriber

MODALITIES = ("av", "audio", "video")


@pytest.fixture(scope="module")
def clips(demo_folder):
    """(id, arrays) of the test clips."""
    listed = read_manifest(demo_folder / "manifest", "test")
    return [(clip.id, Clip(media.read_video(clip.video), media.read_audio(clip.audio))) for clip in listed]


@pytest.fixture
def evaluated(demo_folder, tmp_path):
    """(work folder, config): the demo's run with its checkpoint alone."""
    shutil.copytree(demo_folder / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    checkpoints = Checkpoints(tmp_path / "run")
    config = completed(checkpoints.restore_config(checkpoints.latest_step()))
    checkpoints.close()
    return tmp_path / "run", config


def table(path: pathlib.Path) -> dict[str, dict[str, str]]:
    """Rows of hypotheses by id."""
    with path.open(encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}


def stored(folder: pathlib.Path, split: str = "test") -> dict[str, np.ndarray]:
    """Cluster counts by id."""
    return {one["id"]: one["cluster_counts"] for one in records.open_split(folder, split)}


@pytest.mark.parametrize("text", ["pool:3", "clusters+max:2"])
def test_an_export_makes_the_positions_of_jax(demo_folder, tmp_path, clips, text):
    """And both those of the shards, which are used in another way than in training."""
    export, arrays = tmp_path / "hf", [clip for _, clip in clips]
    to_hf.export(demo_folder / "run", str(export), compression=text)
    assert json.loads((export / "config.json").read_text())["compression"] == text
    assert (export / "kmeans.safetensors").exists() == (text != "pool:3")
    transcribers = (
        Transcriber.from_pretrained(demo_folder / "run", compression=text, batch_size=2),
        Transcriber.from_pretrained(export),
    )
    for modality in MODALITIES:
        counts = stored(demo_folder / "shards" / f"{modality}_clean")
        ours, theirs = ([x.segments[0] for x in one(arrays, modality=modality, vad=False)] for one in transcribers)
        for (name, _), one, other in zip(clips, ours, theirs, strict=True):
            expected = Compression.of(text).run_lengths(counts[name])
            np.testing.assert_array_equal(one.run_lengths, expected)
            np.testing.assert_array_equal(other.run_lengths, expected)
            assert one.text == other.text and one.score == pytest.approx(other.score, abs=1e-3)
    model = AutoModel.from_pretrained(export, trust_remote_code=True)
    frames, samples = [arrays[0].video], [arrays[0].audio]
    for chosen, expected in ((None, text), ("pool:5", "pool:5")):
        _, (found,) = model.encode(frames, samples, compression=chosen)
        counts = stored(demo_folder / "shards" / "av_clean")[clips[0][0]]
        assert found.tolist() == Compression.of(expected).run_lengths(counts).tolist()
    assert model.transcribe(frames, samples, compression="pool:5")[0][0]["text"] is not None
    with pytest.raises(ValueError, match="'pool' is no compression"):
        model.transcribe(frames, samples, compression="pool")
    if text == "pool:3":
        with pytest.raises(ValueError, match="was exported without clusters, by which compression 'clusters' averages"):
            model.transcribe(frames, samples, compression="clusters")
        with pytest.raises(InputError, match="so it takes no media by compression clusters: export it again"):
            Transcriber.from_pretrained(export, compression="clusters")


def test_evaluation_by_name_and_by_setting(evaluated, demo_folder, tmp_path, monkeypatch):
    """The same words by JAX and by PyTorch; each setting has its place among the results."""
    workdir, config = evaluated
    config.evaluate.names = names = ("av_clean", "av_clean_pool3", "av_clean_max2")
    evaluate.evaluate(config, workdir)
    folder, counts = last_folder(workdir), stored(demo_folder / "shards" / "av_clean")
    to_hf.export(demo_folder / "run", str(tmp_path / "hf"))
    found = {}
    for name, text in zip(names, ("clusters", "pool:3", "clusters+max:2"), strict=True):
        rows, output = table(folder / f"{name}.tsv"), tmp_path / f"{name}.tsv"
        assert {id: int(row["positions"]) for id, row in rows.items()} == {
            id: len(Compression.of(text).run_lengths(one)) for id, one in counts.items()
        }
        options = {"model": tmp_path / "hf", "data": demo_folder / "shards" / name, "output": output}
        monkeypatch.setattr("sys.argv", ["decode_hf", *(f"--{key}={value}" for key, value in options.items())])
        decode_hf.main()
        found[name] = {id: (row["hypothesis"], row["score"]) for id, row in rows.items()}
        words = {id: row["hypothesis"] for id, row in table(output).items()}
        assert words == {id: row["hypothesis"] for id, row in rows.items()}
    assert all(len({found[name][id] for name in names}) == 3 for id in counts)
    report = json.loads((workdir / "report.json").read_text())
    frames, positions = (sum(map(f, counts.values())) for f in (sum, len))
    assert report["analysis"]["av_clean"]["positions_per_second"] == pytest.approx(25 * positions / frames)
    assert "against speech positions a second" in (workdir / "report.html").read_text(encoding="utf-8")
    config.evaluate.names, config.evaluate.decoding.compression = ("av_clean", "av_clean_clusters"), "pool:3"
    evaluate.evaluate(config, workdir)
    other = last_folder(workdir)
    assert other.name == f"{folder.name}-pool3" and (folder / "av_clean_max2.tsv").exists()
    for name, same in (("av_clean", "av_clean_pool3"), ("av_clean_clusters", "av_clean")):
        rows = table(other / f"{name}.tsv")
        assert {id: (row["hypothesis"], row["score"]) for id, row in rows.items()} == found[same]
    assert "float32, pool3" in (other / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def without_clusters(demo_folder, tmp_path_factory):
    """(work folder, config) of a training by pool:3 on shards that were written without K-Means."""
    folder = tmp_path_factory.mktemp("pooled")
    stage = ["shards", "--manifest", str(demo_folder / "manifest"), "--encoder", str(DEMO_ENCODER)]
    prepare([*stage, "--workers", "0", "--device", "cpu", "--output", str(folder / "shards"), "--kind", "both"])
    config = demo.get_config()
    config.ctc.weight = 0.0
    config.llm.path, config.data.path = str(demo_folder / "llm"), str(folder / "shards")
    config.data.train, config.data.compression = ("av_clean",), ("pool:3",)
    config.evaluate.names = ("av_clean", "av_clean_pool2")
    config.data.rows, config.updates, config.checkpoint.every, config.log_every = 2, 8, 8, 8
    config.optimizer.warmup_updates, config.optimizer.decay_updates = 1, 7
    config.evaluate.rows = 4
    config.evaluate.decoding.num_beams, config.evaluate.decoding.max_new_tokens = 3, 16
    train.train(config, folder / "run")
    evaluate.evaluate(config, folder / "run")
    return folder / "run", config


def test_shards_without_clusters(without_clusters, demo_folder):
    """The same features, every frame a run of its own, and a note of it."""
    shards = pathlib.Path(without_clusters[1].data.path)
    for split in ("train", "test"):
        clustered = {one["id"]: one for one in records.open_split(demo_folder / "shards" / "av_clean", split)}
        for one in records.open_split(shards / "av_clean", split):
            np.testing.assert_array_equal(one["features"], clustered[one["id"]]["features"])
            assert one["cluster_counts"].tolist() == [1] * len(one["features"])
        lines = (shards / "av_clean" / f"{split}.cluster_counts").read_text().splitlines()
        assert sorted(lines) == sorted(" ".join("1" * len(one["features"])) for one in clustered.values())
    for one in records.open_split(shards / "media_clean", "test", MEDIA):
        assert {n for modality in MODALITIES for n in one[f"cluster_counts_{modality}"]} == {1}
    for name in ("av_clean", "media_clean"):
        recorded = json.loads((shards / name / "provenance.json").read_text())
        assert recorded["kmeans"] is None and recorded["layer"] is None and list(recorded["paths"]) == ["encoder"]


def test_without_clusters_from_shards_to_text(without_clusters, demo_folder, tmp_path, clips):
    workdir, config = without_clusters
    expected = table(last_folder(workdir) / "av_clean.tsv")
    to_hf.export(workdir, str(tmp_path / "hf"))
    arrays = [clip for _, clip in clips]
    for folder in (workdir, tmp_path / "hf"):
        transcriber = Transcriber.from_pretrained(folder, batch_size=4)
        for (name, clip), found in zip(clips, transcriber(arrays, modality="av", vad=False), strict=True):
            (segment,), frames = found.segments, len(clip.video)
            assert segment.run_lengths.tolist() == [3] * (frames // 3) + [frames % 3] * bool(frames % 3)
            assert segment.text == expected[name]["hypothesis"]
            assert segment.score == pytest.approx(float(expected[name]["score"]), abs=1e-3)
    with pytest.raises(InputError, match="av_clean was written without --kmeans, so its frames have no clusters"):
        Transcriber.from_pretrained(workdir, compression="clusters")
    with pytest.raises(InputError, match="av_clean was written without --kmeans, .*compression 'clusters.max:2'"):
        to_hf.export(workdir, str(tmp_path / "no"), compression="clusters+max:2")
    with pytest.raises(
        InputError, match=r"averages the frames of one cluster, and this model .*compression=pool:3: exp"
    ):
        to_reference.export(workdir, fairseq=tmp_path / "no.pt")
    config = config.copy_and_resolve_references()
    config.evaluate.names = ("av_clean_max2",)
    with pytest.raises(InputError, match="av_clean was written without --kmeans, .*compression 'clusters.max:2'"):
        evaluate.evaluate(config, workdir)
    config.data.compression = ("pool:3", "clusters")
    with pytest.raises(
        InputError, match="av_clean was written without --kmeans, .*expected pool:K in config.data.compr"
    ):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_trained_encoder_needs_no_other_one_without_clusters(media_folders, tmp_path):
    """One model for several compressions, and its export for one of them."""
    config = media_config(*media_folders)
    config.encoder.freeze_updates, config.encoder.batch_norm = 0, "batch"
    config.updates, config.checkpoint.every, config.optimizer.peak_lr = 3, 3, 0.02
    config.data.compression = ("clusters", "pool:3")
    train.train(config, tmp_path / "run")
    to_hf.export(tmp_path / "run", str(tmp_path / "hf"), compression="pool:3")
    assert not (tmp_path / "hf" / "cluster_encoder").exists() and (tmp_path / "hf" / "encoder").exists()
    source = records.open_split(media_folders[1] / "media_clean", "test", MEDIA)
    arrays = [Clip(media.decode_video(clip["video"], ""), clip["audio"]) for clip in source]
    by_jax = Transcriber.from_pretrained(tmp_path / "run", compression="pool:3", batch_size=2)
    by_torch = Transcriber.from_pretrained(tmp_path / "hf")
    config.evaluate.names = ("av_clean_pool3",)
    evaluate.evaluate(config, tmp_path / "run")
    words = [row["hypothesis"] for row in table(last_folder(tmp_path / "run") / "av_clean_pool3.tsv").values()]
    for modality in MODALITIES:
        ours, theirs = (
            [x.segments[0] for x in transcriber(arrays, modality=modality, vad=False)]
            for transcriber in (by_jax, by_torch)
        )
        for clip, one, other in zip(arrays, ours, theirs, strict=True):
            assert one.run_lengths.tolist() == other.run_lengths.tolist()
            assert max(one.run_lengths) == 3 and one.run_lengths.sum() == len(clip.video)
            assert one.text == other.text and one.score == pytest.approx(other.score, abs=1e-3)
        if modality == "av":
            by_id = dict(zip([clip["id"] for clip in source], [one.text for one in ours], strict=True))
            assert [by_id[id] for id in sorted(by_id)] == words
