"""A set-up that is wrong in many ways at once, each of them alone, and one that is right."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from small_media import media_config, write_recordings
from small_run import WIDTH, make_example, small_config

from viavsp_jax import sharding, train, update
from viavsp_jax.check import check
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import pipeline, records
from viavsp_jax.data.examples import FEATURES, MEDIA
from viavsp_jax.experiment import load_experiment
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.preflight.corpus import look_at_corpus
from viavsp_jax.preflight.findings import Findings
from viavsp_jax.preflight.look import look
from viavsp_jax.run_settings import follow_devices, read_settings
from viavsp_jax.runtime.errors import InputErrors

GOOD_ROW = {"positions": 128, "frames": 128, "labels": 64, "clips": 5, "window": 64}


@pytest.fixture
def config(folders):
    config = small_config(*folders)
    config.data.row.update(GOOD_ROW)
    return config


class Reached(Exception):
    """Training would have begun."""


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    """What comes after the look, as an exception."""

    def begin(*_):
        raise Reached

    monkeypatch.setattr(train, "Trainer", begin)


def own(folder: os.PathLike | str, place: pathlib.Path) -> pathlib.Path:
    """A copy of a folder, to be spoilt."""
    return shutil.copytree(folder, place / "own" / os.path.basename(folder))


def rewrite(folder: pathlib.Path, split: str, change, kind=FEATURES) -> None:
    """Other records in one split."""
    examples = [one | change(one) for one in records.open_split(folder, split, kind)]
    records.write_shard(records.shard_path(folder, split, 0, 1, kind), examples, kind)
    splits = sorted(records.complete_splits(folder, kind))
    records.write_metadata(folder, WIDTH if kind is FEATURES else None, splits, kind)


def cut(path: pathlib.Path) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def spoilt_shards(config, folder, change) -> pathlib.Path:
    """The config's shard folder, changed."""
    config.data.path = str(own(config.data.path, folder))
    change(pathlib.Path(config.data.path) / "av_clean")


def spoilt_llm(config, folder, change) -> None:
    config.llm.path = str(own(config.llm.path, folder))
    change(pathlib.Path(config.llm.path))


def to_foreign(example):
    return {"source_language": "xx"}


def drop_valid(folder):
    os.unlink(records.shard_path(folder, "valid", 0, 1))
    records.write_metadata(folder, WIDTH, ["train", "test"])


def without_clusters(folder):
    (folder / "provenance.json").write_text(json.dumps({"kmeans": None}))


def too_wide(folder):
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        records.write_shard(records.shard_path(folder, split, 0, 1), [make_example(rng, f"{split}0", "một hai", 9)])
    records.write_metadata(folder, 9, ["train", "valid"])


def unwritable(folder):
    """So much of the text that no model could learn it."""
    for split in ("train", "valid"):
        rewrite(folder, split, lambda example: {"transcript": "㐀㐁 㐂㐃 một"})


def without_byte_tokens(folder):
    """A tokenizer that has no way to write what it does not know."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["byte_fallback"] = False
    path.write_text(json.dumps(content))


def given(**settings):
    return lambda config, folder: config.update_from_flattened_dict(
        {n.replace("__", "."): x for n, x in settings.items()}
    )


def shards(change):
    return lambda config, folder: spoilt_shards(config, folder, change)


def llm(change):
    return lambda config, folder: spoilt_llm(config, folder, change)


def both(*makes):
    def make(config, folder):
        for one in makes:
            one(config, folder)

    return make


FAULTS = {
    "config.dtype is 'bf16', expected float32 or bfloat16": given(dtype="bf16"),
    "config.data.rows is 0, expected a whole number": given(data__rows=0),
    "config.profile_steps ends at 9, beyond config.updates=4": given(profile_steps=(1, 9)),
    "config.llm.path is not set": given(llm__path=""),
    "nowhere/config.json does not exist": given(llm__path="nowhere"),
    "is not a converted language model": llm(lambda folder: (folder / "conversion.json").unlink()),
    "conversion.json is damaged, convert again": llm(lambda folder: cut(folder / "conversion.json")),
    "config.json is not the config of a language model": llm(lambda folder: cut(folder / "config.json")),
    "holds no tokenizer.json or tokenizer.model": llm(lambda folder: (folder / "tokenizer.json").unlink()),
    "the tokenizer in": llm(lambda folder: cut(folder / "tokenizer.json")),
    "has no token '<end>' (config.llm.end_token)": given(llm__end_token="<end>"),
    "has no chat template": given(prompt__chat=True),
    "the weight layers/down/kernel cannot be read": llm(lambda x: shutil.rmtree(x / "params" / "layers.down.kernel")),
    "which does not fit 1 devices": given(mesh__fsdp=3),
    "config.data.path is not set": given(data__path=""),
    "av_other: no such folder": given(data__train=("av_clean", "av_other")),
    "no split 'valid', expected one of ['test', 'train']: give some clips": shards(drop_valid),
    "holds features of width 9, but config.data.feature_width is 12": shards(too_wide),
    "viavsp-valid.array_record-00000-of-00001": shards(lambda folder: cut(records.shard_path(folder, "valid", 0, 1))),
    "av_clean was written without --kmeans, so its frames have no clusters, by which compression 'clusters+max:2'": (
        both(shards(without_clusters), given(data__compression=("pool:2", "clusters+max:2")))
    ),
    "averages them: expected pool:K in config.data.compression, or in config.evaluate.decoding.compression": both(
        shards(without_clusters),
        given(data__compression=("pool:2",), evaluate__decoding__compression="clusters", samples__clips=1),
    ),
    "language 'xx' is unknown": shards(lambda folder: rewrite(folder, "valid", to_foreign)),
    "records do not fit a row": given(data__row__window=20),
    "none of the 24 records of split 'train' fits a row": given(data__row__window=20, data__too_long="skip"),
    "of the label tokens are unknown to the tokenizer": both(shards(unwritable), llm(without_byte_tokens)),
}


@pytest.mark.parametrize("words", FAULTS)
def test_each_fault_alone_is_found_before_anything_is_trained(config, tmp_path, words):
    FAULTS[words](config, tmp_path)
    with pytest.raises(InputErrors) as caught:
        train.train(config, tmp_path / "run")
    # One fault is one sentence, or two where training and validation have it.
    assert words in str(caught.value) and len(caught.value.sentences) <= 2 and "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_right_set_up_has_neither_faults_nor_warnings(config, tmp_path, capsys):
    assert check(config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert shown.endswith("\nnothing is wrong\n") and "warnings" not in shown and "faults" not in shown
    for line in (
        "training clips    av_clean 24\n", "validation clips  av_clean 5\n", "1 of kind cpu, mesh: data 1",
        "2 of 128 positions, 9", "4, of them 1 for the warm-up", "a new run\n", "not looked at: memory and hours",
    ):  # fmt: skip
        assert line in shown, shown
    assert not (tmp_path / "run").exists(), "a look leaves nothing behind"
    with pytest.raises(Reached):
        train.train(config, tmp_path / "run")


def test_without_libtpu_memory_and_hours_are_passed_over(config, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name != "libtpu" and find(name, *more) or None)
    assert check(config, tmp_path / "run", "v5e:2x4")
    assert "not looked at: memory and hours, for which libtpu is needed" in capsys.readouterr().out


def test_many_faults_at_once_are_all_named(media_folders, tmp_path, capsys):
    config = media_config(*media_folders)
    config.llm.path = str(own(config.llm.path, tmp_path))
    cut(pathlib.Path(config.llm.path) / "conversion.json")
    config.encoder.path = str(own(config.encoder.path, tmp_path))
    cut(pathlib.Path(config.encoder.path) / "model.safetensors")
    config.data.path = str(tmp_path / "shards")
    for name in ("clean", "novalid", "damaged", "foreign"):
        shutil.copytree(media_folders[1] / "media_clean", tmp_path / "shards" / f"media_{name}")
    os.unlink(records.shard_path(tmp_path / "shards" / "media_novalid", "valid", 0, 1, MEDIA))
    records.write_metadata(tmp_path / "shards" / "media_novalid", None, ["train"], MEDIA)
    cut(records.shard_path(tmp_path / "shards" / "media_damaged", "train", 0, 1, MEDIA))
    rewrite(tmp_path / "shards" / "media_foreign", "train", to_foreign, MEDIA)
    config.data.train = ("av_clean", "av_missing", "video_novalid", "av_damaged", "audio_foreign", "clean")
    config.data.augment.noise.update(probability=0.5, kinds=("babble", "no_folder", str(tmp_path)), snr_db=(0.0,))
    config.data.row.window, config.mesh.data = 30, 3
    with config.unlocked():
        config.log_evry = 3
    config.label_smoothing, config.evaluate.bucket, config.checkpoint.keep = 2.0, 0, 0
    del config["seed"]
    config.optimizer.warmup_updates, config.encoder.freeze_updates, config.checkpoint.every = 50, 60, 70
    config.evaluate.names, config.evaluate.mapping = ("av_later",), "no_mapping.json"
    (tmp_path / "file").write_text("")
    faults = (
        "config.log_evry is no setting, did you mean config.log_every?",
        "config.label_smoothing is 2.0",
        "config.evaluate.bucket is 0",
        "config.checkpoint.keep is 0",
        "config.seed is missing",
        f"--workdir {tmp_path / 'file'}: a file is there, expected a folder or nothing yet",
        "conversion.json is damaged",
        "model.safetensors: not a readable safetensors file",
        "media_missing: no such folder",
        "media_novalid: no split 'valid', expected one of ['train']: give some clips of the corpus that split",
        "viavsp_media-train.array_record-00000-of-00001",
        "audio_foreign (train), record train0_0: language 'xx' is unknown",
        "'clean' in the config names no clips",
        "records do not fit a row",
        "no_folder: no .wav file there",
        f"{tmp_path}: no .wav file there",
        "'data': 3, 'fsdp': 1, 'tensor': 1}, which does not fit 1 devices",
    )
    warnings = (
        "the warm-up takes 50 of 4 updates",
        "the encoder stays frozen for 60 updates",
        "a checkpoint is made every 70 updates",
        "--mode=eval would not start for av_later: ",
        "no_mapping.json: no such file",
        "a row that holds all clips, for this corpus and this tokenizer: --config.data.row.positions=",
    )
    found, _ = look(config, tmp_path / "file")
    for words, listed in (*((one, found.faults) for one in faults), *((one, found.warnings) for one in warnings)):
        assert sum(words in one for one in listed) == 1, (words, listed)
    assert len(found.faults) == len(faults) >= 15 and len(found.warnings) == len(warnings)
    assert {"model", "weights of the language model", "checkpoints"} <= set(found.passed_over)
    assert not check(config, tmp_path / "file")
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{len(faults)} faults: training would not start" in shown and all(one in shown for one in found.faults)
    with pytest.raises(InputErrors) as caught:
        train.train(config, tmp_path / "file")
    assert list(caught.value.sentences) == found.faults
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "warning" in line] == [f"warning: {one}" for one in found.warnings]


WARNINGS = {
    "ends before the rate has come down": given(optimizer__decay_updates=30),
    "the others have the lowest rate": given(updates=6),
    "config.data.augment is for clips and does nothing to features": given(data__augment__mask__times=2),
    "the warm-up takes 4 of 4 updates, so the rate never gets to": given(optimizer__warmup_updates=4),
    "config.log_every=9 is above config.updates=4: nothing is logged": given(log_every=9),
    "so only the last one is saved and validated": given(checkpoint__every=5),
    "--mode=eval would not start for av_clean: ": given(evaluate__split="dev"),
    "config.evaluate.names holds 'analysis'": given(evaluate__names=("analysis",)),
    "mapping.json: no such file": given(evaluate__mapping="mapping.json"),
    "clips of the validation are trained on, too, the first train0_0": shards(
        lambda folder: rewrite(folder, "valid", lambda one: {"id": one["id"].replace("valid", "train")})
    ),
    "cannot write 1 of the characters in the transcripts, each with a clip that has it: '㐀' U+3400 (train0_3)": both(
        shards(lambda x: rewrite(x, "train", lambda one: {"transcript": "một 㐀"} if one["id"] == "train0_3" else {})),
        llm(without_byte_tokens),
    ),
    "filled, and the rest is computed for nothing; better: --config.data.row": given(data__row__clips=2),
}


@pytest.mark.parametrize("words", WARNINGS)
def test_what_may_be_a_mistake_is_said_and_keeps_nothing_from_starting(config, tmp_path, capsys, words):
    WARNINGS[words](config, tmp_path)
    with pytest.raises(Reached):
        train.train(config, tmp_path / "run")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and words in told[0]


def test_the_encoder_s_faults(media_folders, tmp_path):
    def faults(change):
        shutil.rmtree(tmp_path / "own", ignore_errors=True)
        config = media_config(media_folders[0], media_folders[1], own(media_folders[2], tmp_path))
        change(config, pathlib.Path(config.encoder.path))
        return look(config, tmp_path / "run")[0].faults

    def of_another(config, folder):
        sizes = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(sizes | {"ffn_dim": sizes["ffn_dim"] + 1}))

    assert faults(lambda config, folder: None) == []
    for words, change in {
        "config.encoder.path is not set": lambda config, folder: config.encoder.update({"path": ""}),
        "config.json: no such file": lambda config, folder: (folder / "config.json").unlink(),
        "expected 33 (config.data.feature_width)": lambda config, folder: config.data.update({"feature_width": 33}),
        "model.safetensors: no such file": lambda config, folder: (folder / "model.safetensors").unlink(),
        "holds other shapes than config.json says": of_another,
    }.items():
        (found,) = faults(change)
        assert words in found


def test_noise_that_is_there_is_taken(media_folders, tmp_path):
    config = media_config(*media_folders)
    kinds = ("babble", str(write_recordings(tmp_path / "noise")))
    config.data.augment.noise.update(probability=0.5, kinds=kinds, snr_db=(0.0,))
    assert look(config, tmp_path / "run")[0].faults == []


def test_a_disk_has_to_have_room_for_the_checkpoints(config, tmp_path, small_disk):
    disk = small_disk(20 << 20)
    assert look(config, disk.path / "run")[0].faults == []
    config.checkpoint.keep = 100
    (found,) = look(config, disk.path / "run")[0].faults
    assert "MB for 100 + 2 checkpoints of 0.5 MB and results: free space" in found


def test_what_is_in_the_work_folder_has_to_fit(config, tmp_path, capsys):
    """Sizes and order of the data at once; and a run that is finished is said to be."""
    exp = load_experiment(config)
    optimizer, _ = make_optimizer(exp.settings.optimizer)
    state = update.init_state(exp, optimizer)
    state = dataclasses.replace(state, step=jax.device_put(jnp.int32(2), state.step.sharding))
    batches = pipeline.training_batches(exp.settings.data, exp.prompt)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state, batches, exp.config, exp.fits, {}, {"accuracy": 0.5})
    checkpoints.close()
    batches.close()
    assert check(config, tmp_path) and "goes on from update 2 of 4" in capsys.readouterr().out
    config.lora.rank, config.lora.alpha, config.seed = 3, 7.0, 5
    found, _ = look(config, tmp_path)
    for words in (
        "was trained with config.lora.rank 16, not 3",
        "config.lora.alpha 32.0, not 7.0",
        "config.seed 0, not",
    ):
        assert sum(words in one for one in found.faults) == 1, found.faults
    assert len(found.faults) == 3
    config.lora.rank, config.lora.alpha, config.seed, config.updates = 16, 32.0, 0, 2
    assert check(config, tmp_path) and "the run is finished" in capsys.readouterr().out
    damaged = next(path for path in (tmp_path / "checkpoints").rglob("*") if path.match("fits/metadata"))
    cut(damaged)
    (fault,) = look(config, tmp_path)[0].faults
    assert "expected a checkpoint as it was saved" in fault


def test_what_a_run_begins_with_is_looked_at(config, tmp_path):
    config.init_from, config.trackers = str(tmp_path / "nowhere"), ("nowhere_at_all:init",)
    found, _ = look(config, tmp_path / "work")
    assert len(found.faults) == 2
    assert "config.trackers has 'nowhere_at_all:init'" in found.faults[0]
    assert "expected a work folder, one of its checkpoints or an export" in found.faults[1]


def test_rows_that_follow_the_devices_are_known(config, tmp_path):
    config.data.rows, config.evaluate.rows, config.data.row.clips = -1, -1, 4
    found, ready = look(config, tmp_path / "work")
    assert not found.faults and ready.experiment.settings.data.rows == 8
    assert any(text.startswith("8 of 128 positions") for what, text in found.facts if what == "rows")
    config.device_rows = 3
    found, _ = look(config, tmp_path / "work")
    assert [one for one in found.faults if "config.device_rows is 3, which does not divide the 8 rows" in one]


def test_padding_on_many_devices_is_said(config, tmp_path):
    config.data.rows, config.data.row.clips, config.data.row.window = -1, 8, 64
    settings, exp = read_settings(config), load_experiment(config)
    found = Findings()
    data = follow_devices(settings, AbstractMesh((64, 1, 1), sharding.AXES), 15).data
    whole = dataclasses.replace(settings.data, rows=8)
    assert data.rows == 64 and data.row.clips == 1
    look_at_corpus(found, data, exp.prompt, tmp_path, whole, exp.settings.ctc, "")
    assert not found.faults and found.facts[-2][1].startswith("64 of 64 positions")
    (warning,) = [one for one in found.warnings if "padding" in one]
    share = found.facts[-2][1].split(", ")[1]
    assert warning.startswith(f"{100 - int(share.split('%')[0])}% of the rows is padding, since a batch is cut into 64")
