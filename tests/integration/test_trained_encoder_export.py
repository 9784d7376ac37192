"""A run that trained its encoder, given to PyTorch: the encoder as the checkpoint has it, and the same words."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_corpus import heard_as, with_gaps
from small_media import media_config
from small_run import make_shards

from convert import decode_hf, to_hf
from convert.avhubert import load_flax
from convert.names import flatten
from convert.work_folder import encoder_weights, open_work_folder
from viavsp_jax import encoder_folder, evaluate, experiment, train
from viavsp_jax.app.recognizer import Utterance
from viavsp_jax.app.recognizer_jax import JaxRecognizer
from viavsp_jax.app.recognizer_torch import TorchRecognizer
from viavsp_jax.data import media, records
from viavsp_jax.data.examples import MEDIA, MODALITIES
from viavsp_jax.data.features import audio_features
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.initial import initial_weights
from viavsp_jax.prepare import kmeans
from viavsp_jax.prepare.features.avhubert_torch import load_encoder
from viavsp_jax.prepare.features.encoder_torch import TorchEncoder
from viavsp_jax.prepare.features.reading import Media
from viavsp_jax.prepare.recordings.voice import moves
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.transcribe import Clip, Transcriber

NAMES = ("av_clean", "audio_clean", "video_clean")


@pytest.fixture(scope="module")
def media_folders(media_folders, tmp_path_factory):
    """With an encoder that hears floats: whoever hears int16 values finds other words or features than the others."""
    llm, shards, encoder = media_folders
    return llm, shards, heard_as(encoder, "float", tmp_path_factory.mktemp("float") / "encoder")


@pytest.fixture(scope="module")
def run(media_folders, tmp_path_factory):
    """(work folder, config) of 3 updates that change all of the encoder, its statistics included."""
    config, workdir = media_config(*media_folders), tmp_path_factory.mktemp("run")
    config.encoder.freeze_updates, config.encoder.batch_norm = 0, "batch"
    config.updates, config.checkpoint.every, config.optimizer.peak_lr = 3, 3, 0.02
    config.data.train, config.evaluate.names, config.evaluate.bucket = NAMES, NAMES, 128
    config.data.augment.drop_frames.spans = 1
    train.train(config, workdir)
    return workdir, config


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "hf"
    to_hf.export(run[0], str(folder), merge=True)
    return folder


def test_the_export_holds_the_encoder_and_statistics_of_the_checkpoint(run, exported, media_folders):
    expected, before = (
        flatten(encoder_weights(*open_work_folder(run[0]).read_weights())),
        flatten(load_flax(media_folders[2])[1]),
    )
    config, weights = load_flax(exported / "encoder")
    assert config == encoder_folder.read_config(media_folders[2])
    found = flatten(weights)
    assert found.keys() == expected.keys() == before.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    same = {name for name in found if np.array_equal(found[name], before[name])}
    assert same <= {"blocks/k/bias"}  # softmax does not see what is added to all keys alike
    encoder = load_encoder(exported / "encoder").state_dict()
    counters = {int(value) for name, value in encoder.items() if name.endswith("num_batches_tracked")}
    assert len(counters) == 1 and counters.pop() > 4
    assert {value.dtype for value in encoder.values()} == {torch.float32, torch.int64}
    assert json.loads((exported / "config.json").read_text())["trained_encoder"] is True
    assert not [name for name in load_file(exported / "merged" / "model.safetensors") if "encoder" in name]


def test_transformers_writes_the_same_words(run, exported, tmp_path, monkeypatch):
    workdir, config = run
    evaluate.evaluate(config, workdir)
    words = {}
    for name in NAMES:
        table = tmp_path / f"{name}.tsv"
        options = {
            "model": exported, "data": f"{config.data.path}/media_clean", "output": table, "batch_size": 3,
            "modality": name.removesuffix("_clean"),
        }  # fmt: skip
        monkeypatch.setattr("sys.argv", ["decode_hf", *(f"--{key}={value}" for key, value in options.items())])
        decode_hf.main()
        ours, theirs = (
            {row["id"]: row["hypothesis"] for row in csv.DictReader(path.open(encoding="utf-8"), delimiter="\t")}
            for path in (last_folder(workdir) / f"{name}.tsv", table)
        )
        assert ours == theirs
        words[name] = tuple(theirs.values())
    assert len(words["av_clean"]) == 5 and len(set(words.values())) > 1


def test_features_are_those_of_the_modality(run, exported):
    """The embeddings too: words alone could hide an encoder that is nearly right."""
    source = records.open_split(f"{run[1].data.path}/media_clean", "test", MEDIA)
    model, clips = decode_hf.load_model(exported, None, False, "cpu", None), list(source)
    means = {}
    for modality in MODALITIES:
        examples = decode_hf.with_features(model, modality, clips, source.folder)
        together = [example["features"] for example in examples]
        alone = [decode_hf.with_features(model, modality, [clip], "")[0]["features"] for clip in clips]
        for batched, single, clip, example in zip(together, alone, clips, examples, strict=True):
            np.testing.assert_allclose(batched, single, atol=1e-5)
            np.testing.assert_array_equal(example["cluster_counts"], clip[f"cluster_counts_{modality}"])
        means[modality] = together[0].mean(0)
    assert all(np.abs(means["av"] - means[name]).max() > 1e-2 for name in ("audio", "video"))


def test_features_are_of_the_samples_that_the_encoder_hears(run, exported):
    """In decode_hf and in the export's own code."""
    clip = records.open_split(f"{run[1].data.path}/media_clean", "test", MEDIA)[0]
    clip["audio"], frames = with_gaps(clip["audio"]), media.decode_video(clip["video"], "")
    model, encoder = decode_hf.load_model(exported, None, False, "cpu", None), load_encoder(exported / "encoder")
    as_floats, as_int16 = (
        encoder.encode_clips([audio_features(clip["audio"], len(frames), waveform)], None, [len(frames)], ["audio"], 0)
        for waveform in ("float", "int16")
    )
    assert torch.std(as_floats["audio"][1] - as_int16["audio"][1]) > 1e-2
    (found,) = decode_hf.with_features(model, "audio", [clip], "")
    np.testing.assert_allclose(found["features"], as_floats["audio"][1][0], atol=1e-5)


def test_what_is_not_seen_is_hidden_from_a_model_that_was_trained_so(run, media_folders, tmp_path):
    """By JAX and by PyTorch alike; all of it hidden, it is as if there was sound alone."""
    clip = records.open_split(f"{run[1].data.path}/media_clean", "test", MEDIA)[0]
    frames, samples = media.decode_video(clip["video"], ""), clip["audio"]
    frames = np.concatenate([frames[:5], frames[4:5].repeat(20, 0), frames[5:]])  # it stands still for a while
    samples = np.resize(samples, 640 * len(frames))
    encoder, centers = str(media_folders[2]), str(tmp_path / "kmeans")
    width = encoder_folder.read_config(encoder).embed_dim
    values = np.random.default_rng(0).normal(0, 1, (9, width)).astype(np.float32)
    kmeans.save_centers(centers, values, {"layer": 2, "seed": 0, "num_frames": 1})
    to_hf.export(run[0], str(tmp_path / "hf"), kmeans=centers)
    by_jax = JaxRecognizer(run[0], 1, encoder=encoder, kmeans=centers)
    recognizers = by_jax, TorchRecognizer(str(tmp_path / "hf"), None, "cpu")
    shown = moves(frames, 12)
    assert 18 <= (~shown).sum() < len(frames)
    found = {}
    for name, pictures, seen in (
        *(("all", frames, None), ("some", frames, shown), ("none", frames, np.zeros(len(frames), bool))),
        ("audio", None, None),
    ):
        utterance = Utterance(pictures, samples, len(frames), seen)
        ours, theirs = (one([utterance], ("vi", "vi"), 1)[0] for one in recognizers)
        np.testing.assert_array_equal(ours.run_lengths, theirs.run_lengths)
        assert ours.hypotheses[0].text == theirs.hypotheses[0].text
        np.testing.assert_allclose(ours.hypotheses[0].score, theirs.hypotheses[0].score, atol=1e-4)
        found[name] = ours.hypotheses[0].score
    assert found["none"] == pytest.approx(found["audio"], abs=1e-5)
    assert abs(found["some"] - found["all"]) > 1e-4 and abs(found["some"] - found["none"]) > 1e-4
    for recognizer in recognizers:
        assert recognizer.knows_lost_video
        transcript = Transcriber(recognizer)(Clip(frames, samples), modality="av", vad=False, num_beams=1)
        assert transcript.segments[0].score == pytest.approx(found["some"], abs=1e-4)
        recognizer.knows_lost_video = False
        transcript = Transcriber(recognizer)(Clip(frames, samples), modality="av", vad=False, num_beams=1)
        assert transcript.segments[0].score == pytest.approx(found["all"], abs=1e-4)


def test_an_export_from_another_place(run, exported, media_folders, tmp_path):
    """What the encoder grew from has moved: its config is all that is needed of it."""
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(media_folders[2] / "config.json", moved)
    to_hf.export(run[0], str(tmp_path / "hf"), encoder=moved)
    name = "encoder/model.safetensors"
    assert (tmp_path / "hf" / name).read_bytes() == (exported / name).read_bytes()
    with pytest.raises(InputError, match="none holds no config.json: give the folder .* with --encoder"):
        to_hf.export(run[0], str(tmp_path / "no"), encoder=tmp_path / "none")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"num_heads": 2}))
    with pytest.raises(InputError, match="was trained with the encoder's num_heads 4, not 2"):
        to_hf.export(run[0], str(tmp_path / "no"), encoder=moved)


def test_data_of_the_other_kind_is_one_clear_error(run, exported, export, tmp_path, monkeypatch, capsys):
    features, media = make_shards(tmp_path / "av_clean"), f"{run[1].data.path}/media_clean"
    for arguments, message in (
        (["--model", exported, "--data", features], "av_clean holds features, but the export has an encoder"),
        (["--model", export, "--data", media], "media_clean holds media, but the export has no encoder"),
        (["--model", export, "--data", features, "--modality", "av"], "--modality av is for shards of media only"),
        (["--model", exported, "--data", tmp_path], "no dataset_info.json"),
    ):
        monkeypatch.setattr("sys.argv", ["decode_hf", *map(str, arguments)])
        with pytest.raises(SystemExit) as status:
            decode_hf.main()
        error = capsys.readouterr().err
        assert status.value.code == 2 and message in error and "Traceback" not in error


def test_a_video_that_does_not_fit_its_counts_is_one_clear_error(run, exported):
    source = records.open_split(f"{run[1].data.path}/media_clean", "test", MEDIA)
    model, clip = decode_hf.load_model(exported, None, False, "cpu", None), source[0]
    counts = clip["cluster_counts_av"]
    for change, message in (
        ({"cluster_counts_av": np.append(counts, 1)}, f"has {counts.sum()} frames, expected {counts.sum() + 1}"),
        ({"video": b"text"}, "not a readable video"),
    ):
        with pytest.raises(InputError, match=f"folder: the video of '{clip['id']}'.*{message}"):
            decode_hf.with_features(model, "av", [clip | change], "folder")


def test_transcription_clusters_by_the_encoder_it_grew_from(run, media_folders, tmp_path):
    """By JAX and by PyTorch the same words, of features of the trained encoder in runs of the other one."""
    workdir, config = run
    rng = np.random.default_rng(0)
    source = records.open_split(f"{config.data.path}/media_clean", "test", MEDIA)
    clips = [Clip(media.decode_video(clip["video"], ""), with_gaps(clip["audio"])) for clip in source]
    before = TorchEncoder(load_encoder(media_folders[2]))
    items = [Media(clip.video, audio_features(clip.audio, len(clip.video), "float"), b"", clip.audio) for clip in clips]
    lengths = [len(clip.video) for clip in clips]
    frames = {
        name: [x[:t].numpy() for x, t in zip(layer, lengths, strict=True)]
        for name, (layer, _) in before.encode(items, lengths, MODALITIES, 2).items()
    }
    centers = rng.permutation(np.concatenate(frames["av"]))[:9]
    kmeans.save_centers(tmp_path / "kmeans", centers, {"layer": 2, "seed": 0, "num_frames": 1})
    to_hf.export(workdir, str(tmp_path / "hf"), kmeans=tmp_path / "kmeans")
    places = {"encoder": str(media_folders[2]), "kmeans": str(tmp_path / "kmeans")}
    by_jax = Transcriber.from_pretrained(workdir, **places, batch_size=2)
    by_torch = Transcriber.from_pretrained(tmp_path / "hf")
    heard = [item.audio for item in items]
    features, _ = by_torch.recognizer._model.encode(None, [clip.audio for clip in clips], lengths)
    expected = load_encoder(tmp_path / "hf" / "encoder").encode_clips(heard, None, lengths, ["audio"], None)["audio"][1]
    for one, other, length in zip(features, expected, lengths, strict=True):
        np.testing.assert_allclose(one, other[:length], atol=1e-5)
    words = {}
    for name in MODALITIES:
        ours, theirs = (
            [transcript.segments[0] for transcript in transcriber(clips, modality=name, vad=False)]
            for transcriber in (by_jax, by_torch)
        )
        for one, other, layer in zip(ours, theirs, frames[name], strict=True):
            expected = kmeans.run_lengths(kmeans.assign(layer, centers))
            np.testing.assert_array_equal(one.run_lengths, expected)
            np.testing.assert_array_equal(other.run_lengths, expected)
            assert one.text == other.text and one.score == pytest.approx(other.score, abs=1e-3)
        words[name] = [one.text for one in ours]
    assert len({tuple(texts) for texts in words.values()}) > 1
    # An export that does not know the clusters says so.
    with pytest.raises(InputError, match="was exported without encoder and clusters, so it takes no media"):
        to_hf.export(workdir, str(tmp_path / "features"))
        Transcriber.from_pretrained(tmp_path / "features")


@pytest.mark.parametrize("which", ["work folder", "export"])
def test_another_training_begins_with_the_trained_encoder(run, exported, which):
    workdir, config = run[0], run[1].copy_and_resolve_references()
    config.init_from = str(workdir if which == "work folder" else exported)
    exp = experiment.load_experiment(config)
    found = initial_weights(exp)
    opened = open_work_folder(workdir)
    for ours, theirs in zip(found, opened.read_weights(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    config.encoder.train = False
    with pytest.raises(InputError, match="whose encoder was trained too: expected config.encoder.train=true"):
        initial_weights(experiment.load_experiment(config))
