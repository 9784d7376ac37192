"""A training with a CTC head: the rest learns as without it, rows hold its clips, and what it is used for."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from small_corpus import with_gaps
from small_media import media_config
from small_run import small_config
from transformers import AutoModel

from convert import to_hf
from convert.hub.language_model_viavsp import ExportError
from viavsp_jax import calibrate, evaluate, experiment, sharding, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import media, pipeline, records, vocabulary
from viavsp_jax.data.examples import MEDIA, MODALITIES
from viavsp_jax.data.packing import ClipUnits
from viavsp_jax.decoding import calibration
from viavsp_jax.decoding.calibration import Calibration
from viavsp_jax.decoding.decoder import fill_up
from viavsp_jax.decoding.nbest import Confidence
from viavsp_jax.evaluation.report import results
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.prepare import kmeans
from viavsp_jax.prepare.features.avhubert_torch import load_encoder
from viavsp_jax.prepare.features.encoder_torch import TorchEncoder
from viavsp_jax.prepare.features.reading import Media
from viavsp_jax.runtime.errors import InputError, InputErrors
from viavsp_jax.transcribe import Clip, Transcriber


def with_head(config, **changes):
    config = config.copy_and_resolve_references()
    config.ctc = {"weight": 0.5, "units": 64, "width": 16} | changes
    return config


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """(config, work folder) of a run of four updates that was evaluated."""
    config, workdir = with_head(small_config(*folders)), tmp_path_factory.mktemp("run")
    config.checkpoint.keep = 2
    train.train(config, workdir)
    evaluate.evaluate(config, workdir)
    return config, workdir


def trained(config, workdir, step=4):
    exp = experiment.load_experiment(config)
    return Checkpoints(workdir).restore_trainable(step, exp.trainable)


def test_the_rest_learns_as_without_it(run, folders, tmp_path):
    """Frames are cached: nothing of the head's loss reaches another weight."""
    config, workdir = run
    plain = small_config(*folders)
    train.train(plain, tmp_path)
    ours, theirs = trained(config, workdir), trained(plain, tmp_path)
    assert ours.keys() == theirs.keys() | {"ctc"} and not (tmp_path / vocabulary.FILE).exists()
    # Programs add in another order; an update moves weights by 5e-3.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), {name: ours[name] for name in theirs}, theirs
    )
    new = experiment.load_experiment(config).init_trainable()["ctc"]
    assert all(np.abs(ours["ctc"][name] - new[name]).max() > 1e-3 for name in ("hidden", "output"))


def test_a_run_that_was_stopped_goes_on(run, tmp_path):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    train.train(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, trained(config, tmp_path / "run"), trained(config, workdir))


def test_rows_hold_the_clips_of_the_head(run):
    """What it makes of a clip in a row is what it makes of the clip alone, and the row knows what is said there."""
    config, workdir = run
    exp, known = experiment.load_experiment(config), vocabulary.read(workdir)
    data, longest = exp.settings.data, 50
    source = list(pipeline.evaluation_records(data, "av_clean", "valid"))
    model = nnx.merge(exp.structure, trained(config, workdir), exp.load_frozen())
    alone, texts = {}, {}
    for found, batch in pipeline.decoding_batches(data, exp.prompt, source, 4, 32):
        batch = sharding.put_whole_batch(exp.mesh, fill_up(batch, found))
        logits, padding = model.ctc_logits(batch)
        for record, one, without in zip(found, logits, padding, strict=False):
            alone[record["id"]], texts[record["id"]] = np.asarray(one)[~np.asarray(without)], record["transcript"]
    clip_units = ClipUnits(known, longest)
    for batch in pipeline.validation_batches(data, exp.prompt, clip_units=clip_units):
        logits, padding = model.outputs(batch)[1]
        for one, without, own in zip(
            np.asarray(logits), np.asarray(padding), batch["units"].reshape(-1, longest), strict=True
        ):
            if not without.all():
                close = [id for id, expected in alone.items() if len(expected) == (~without).sum()
                         and np.allclose(one[~without], expected, atol=1e-4)]  # fmt: skip
                (id,) = close
                assert own.tolist() == clip_units.of(texts.pop(id), len(alone[id])).tolist()
    assert not texts, "each clip is in one row"


def test_what_the_encoder_alone_knows_is_in_the_report(run):
    _, workdir = run
    report = json.loads((workdir / "report.json").read_bytes())
    assert 0 < report["av_clean"]["ctc_wer"] and len(report["av_clean"]["ctc_wer_interval"]) == 2
    assert "the encoder alone" in (workdir / "report.html").read_text()
    with open(last_folder(workdir) / "av_clean.tsv", encoding="utf-8") as file:
        assert all("ctc" in row for row in csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": 70}, "was trained with config.ctc.units 64, not 70"),
        ({"width": 8}, "was trained with config.ctc.width 16, not 8"),
        ({"weight": 0.0}, "was trained with config.ctc.weight above 0 True, not False"),
    ],
)
def test_another_head_does_not_fit(run, changes, message):
    config, workdir = run
    with pytest.raises(InputError, match=message):
        evaluate.evaluate(with_head(config, **changes), workdir)


def test_a_checkpoint_without_a_head_does_not_fit(folders, tmp_path):
    config = small_config(*folders)
    config.updates = config.checkpoint.every = 1
    train.train(config, tmp_path)
    with pytest.raises(InputError, match="was trained with config.ctc.weight above 0 False, not True"):
        evaluate.evaluate(with_head(config), tmp_path)


def test_units_that_are_gone_or_too_few(run, folders, tmp_path):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / vocabulary.FILE).unlink()
    evaluate.evaluate(config, tmp_path / "run")  # the checkpoint has them, too
    assert (last_folder(tmp_path / "run") / "av_clean.tsv").read_bytes() == (
        last_folder(workdir) / "av_clean.tsv"
    ).read_bytes()
    for folder in (tmp_path / "run" / "checkpoints").glob("*/units"):  # as an earlier version's, which had them not
        shutil.rmtree(folder)
    with pytest.raises(InputError, match="ctc_units.json: no such file"):
        evaluate.evaluate(config, tmp_path / "run")
    with pytest.raises(InputError, match="config.ctc.units is 9, expected at least"):
        train.train(with_head(small_config(*folders), units=9), tmp_path / "new")


@pytest.mark.parametrize("has_head", [True, False])
def test_another_training_begins_with_the_head_if_there_is_one(run, folders, tmp_path, has_head):
    config, workdir = run
    source = workdir
    if not has_head:
        plain, source = small_config(*folders), tmp_path / "plain"
        plain.updates = plain.checkpoint.every = 1
        train.train(plain, source)
    config = config.copy_and_resolve_references()
    config.init_from, config.updates, config.optimizer.peak_lr = str(source), 1, 1e-12
    train.train(config, tmp_path / "new")
    best = trained(config, workdir, Checkpoints(workdir).best_step()) if has_head else None
    found, new = trained(config, tmp_path / "new", 1)["ctc"], experiment.load_experiment(config).init_trainable()["ctc"]
    expected = best["ctc"] if has_head else new
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found, expected)
    assert (vocabulary.read(tmp_path / "new").text == vocabulary.read(workdir).text) or not has_head


def test_exports_tell_the_same_words_times_and_confidences(media_folders, tmp_path):
    """Of a training that trained its encoder, too: rows of clips."""
    config = with_head(media_config(*media_folders), weight=1.0)
    config.encoder.freeze_updates, config.updates, config.checkpoint.every = 0, 2, 2
    train.train(config, tmp_path / "run")
    source = records.open_split(f"{config.data.path}/media_clean", "test", MEDIA)
    clips = [Clip(media.decode_video(clip["video"], ""), with_gaps(clip["audio"])) for clip in source]
    encoder = TorchEncoder(load_encoder(media_folders[2]))
    items = [Media(clip.video, np.zeros((len(clip.video), 104), np.float32), b"", clip.audio) for clip in clips]
    layer, _ = encoder.encode(items, [len(clip.video) for clip in clips], ("av",), 2)["av"]
    centers = np.random.default_rng(0).permutation(np.concatenate([x.numpy() for x in layer]))[:9]
    kmeans.save_centers(tmp_path / "kmeans", centers, {"layer": 2, "seed": 0, "num_frames": 1})
    weights = Checkpoints(tmp_path / "run").weights_sum(2)
    calibration.write(tmp_path / "run", 2, Calibration(0.5, Confidence(1.0, 0.1, 0.2, 0.3)), {"weights": weights})
    to_hf.export(tmp_path / "run", str(tmp_path / "hf"), kmeans=tmp_path / "kmeans")
    places = {"encoder": str(media_folders[2]), "kmeans": str(tmp_path / "kmeans")}
    by_jax = Transcriber.from_pretrained(tmp_path / "run", **places, batch_size=2)
    by_torch = Transcriber.from_pretrained(tmp_path / "hf")
    assert by_jax.recognizer.knows_words and by_torch.recognizer.knows_words
    by_torch.recognizer._model.save_pretrained(tmp_path / "again")
    again = Transcriber.from_pretrained(tmp_path / "again")
    with pytest.raises(ExportError, match="the ctc_weight is -1, expected a finite number of at least 0"):
        by_torch.recognizer._model.transcribe(video=[clips[0].video], ctc_weight=-1)
    # The code that the export carries tells them by itself.
    alone = AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    crops = {"video": [clips[0].video]}
    assert alone.transcribe(**crops)[0] == by_torch.recognizer._model.transcribe(**crops)[0]
    assert alone.transcribe(**crops)[0][0]["words"] and type(alone).__module__.startswith("transformers_modules")
    said = 0
    for modality in MODALITIES:
        for ours, *others in zip(
            *[one(clips, modality=modality, vad=False) for one in (by_jax, by_torch, again)], strict=True
        ):
            said += len(ours.words)
            for theirs in others:
                assert [one.text for one in ours.segments[0].hypotheses] == [
                    one.text for one in theirs.segments[0].hypotheses
                ]
                told = [[word.confidence for word in one.words] for one in (ours, theirs)]
                np.testing.assert_allclose(*told, atol=1e-4)
                assert [(word.text, word.start, word.end) for word in ours.words] == [
                    (word.text, word.start, word.end) for word in theirs.words
                ]
            assert " ".join(word.text for word in ours.words) == ours.text
    assert said
    # A translation is not what is said.
    assert by_torch(clips[0], languages=("vi", "en"), vad=False).segments[0].words is None


def test_a_calibrated_checkpoint_ranks_by_its_head_and_tells_how_sure_words_are(run, tmp_path, capsys):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    step, found = Checkpoints(workdir).best_step(), calibrate.calibrate(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert "CTC weight  av_clean  mean WER %" in told and f"\n{found.ctc_weight:g} " in told
    kept = json.loads(calibration.path_of(tmp_path / "run", step).read_bytes())
    assert kept["split"] == "valid" and len(kept["wer_by_ctc_weight"]) == len(calibrate.WEIGHTS)
    means = {float(weight): rates["av_clean"] for weight, rates in kept["wer_by_ctc_weight"].items()}
    assert means[found.ctc_weight] == min(means.values())
    assert calibration.read(tmp_path / "run", step, kept["weights"]) == found

    # As after a longer training: so short a one has no word right.
    longer = Calibration(0.5, Confidence(1.0, 0.1, 0.2, 0.3))
    calibration.write(tmp_path / "run", step, longer, {"weights": kept["weights"]})
    evaluate.evaluate(config, tmp_path / "run")
    assert "the CTC head ranks hypotheses with a weight of 0.5" in capsys.readouterr().out
    folder = last_folder(tmp_path / "run")
    assert folder.name == f"{step:08}-test-beam5-ctc0.5-float32"
    rows = results.read_table(folder / "av_clean.tsv")
    assert any(row["confidences"] for row in rows)
    config = config.copy_and_resolve_references()
    config.evaluate.decoding.ctc_weight = 0.0
    evaluate.evaluate(config, tmp_path / "run")
    before = {row["id"]: row["hypothesis"] for row in results.read_table(last_folder(workdir) / "av_clean.tsv")}
    plain = results.read_table(last_folder(tmp_path / "run") / "av_clean.tsv")
    assert {row["id"]: row["hypothesis"] for row in plain} == before != {row["id"]: row["hypothesis"] for row in rows}

    # Calibrated anew: confidences of both are not mixed in one report.
    config.evaluate.decoding.ctc_weight = calibration.AS_CALIBRATED
    longer = Calibration(0.5, Confidence(0.0, 0.1, 0.2, 0.3))
    calibration.write(tmp_path / "run", step, longer, {"weights": kept["weights"]})
    evaluate.evaluate(config, tmp_path / "run")
    other = last_folder(tmp_path / "run")
    assert other.name.startswith(f"{folder.name}-") and results.read_table(folder / "av_clean.tsv") == rows
    assert results.read_table(other / "av_clean.tsv") != rows


def test_what_cannot_be_calibrated(run, folders, tmp_path):
    config, workdir = run
    with pytest.raises(InputError, match="config.ctc.weight is 0, expected a training with a CTC head"):
        calibrate.calibrate(small_config(*folders), workdir)
    config = config.copy_and_resolve_references()
    config.evaluate.names = ("av_none",)
    with pytest.raises(InputError, match="av_none: no such folder, expected config.evaluate.names of av_clean"):
        calibrate.calibrate(config, workdir)
    config.evaluate.names, config.evaluate.decoding.num_beams = ("av_clean",), 1
    with pytest.raises(InputError, match="num_beams is 1, expected several"):
        calibrate.calibrate(config, workdir)
    config = small_config(*folders)
    config.evaluate.decoding.ctc_weight = 0.5
    with pytest.raises(InputError, match="ctc_weight is 0.5, expected 0 or -1 for a training without a CTC head"):
        evaluate.evaluate(config, workdir)


def test_clips_that_fit_no_row_are_named(folders, tmp_path):
    """As without a head, whose units are learned of the same texts."""
    config = with_head(small_config(*folders))
    config.data.row.frames = 5
    with pytest.raises(InputErrors, match="29 of 29 records do not fit a row"):
        train.train(config, tmp_path)
