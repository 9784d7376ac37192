"""Bad shard folders and records, as training, validation and evaluation read them."""

import dataclasses
import json
import os
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from bad_input import REFUSED, Bad, each
from small_media import media_config
from small_run import WIDTH, small_config

from viavsp_jax.data import pipeline, records
from viavsp_jax.data.examples import FEATURES, MEDIA, Kind
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError

ENTRY, CLIPS = "training, evaluation", "training of the encoder"
NAMES = {ENTRY: ("viavsp", "av_clean"), CLIPS: ("viavsp_media", "media_clean")}


def bad(wrong, words, make, entry=ENTRY):
    return Bad(entry, wrong, REFUSED, words, make)


def shard(change):
    """Changes the files of shards, one for each split."""

    def make(folder):
        for path in folder.glob("*array_record*"):
            change(path)

    return make


def replaced(name, old, new):
    def make(folder):
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new, 1))

    return make


def record(change, splits=("train", "valid", "test")):
    """Changes one record of each split; the writer checks nothing."""

    def make(folder):
        kind = MEDIA if "media" in folder.name else FEATURES
        for split in splits:
            examples = list(records.open_split(folder, split, kind))
            examples[2] = examples[2] | change(examples[2])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Kind, "validate", lambda *_: None)
                records.write_shard(records.shard_path(folder, split, 0, 1, kind), examples, kind)

    return make


def stored(content):
    """Other bytes in place of one record of each split."""

    def make(folder):
        for path in folder.glob("*array_record*"):
            writer = records.ArrayRecordWriter(str(path), "group_size:1")
            for _ in range(24):
                writer.write(content)
            writer.close()

    return make


def other_width(folder):
    """In the records, not in what the folder says of itself."""
    for split in ("train", "valid", "test"):
        examples = list(records.open_split(folder, split))
        wide = [one | {"features": np.zeros((len(one["features"]), WIDTH + 1), np.float16)} for one in examples]
        records.write_shard(records.shard_path(folder, split, 0, 1), wide)


def other_dtype(folder):
    features = tfds.features.Tensor(shape=(None, WIDTH), dtype=np.float32, encoding="bytes")
    kind = dataclasses.replace(FEATURES, content=lambda _: {"features": features})
    for split in ("train", "valid", "test"):
        examples = list(records.open_split(folder, split))
        wide = [one | {"features": one["features"].astype(np.float32)} for one in examples]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Kind, "validate", lambda *_: None)
            records.write_shard(records.shard_path(folder, split, 0, 1), wide, kind)


def without_splits(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    splits = [split | {"name": f"x{split['name']}"} for split in info["splits"]]
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": splits}))


def without_records(folder):
    for split in ("train", "valid", "test"):
        records.write_shard(records.shard_path(folder, split, 0, 1), [])
    records.write_metadata(folder, WIDTH, ["train", "valid", "test"])


def value(array):
    """The features of a record, one of them changed."""

    def change(one):
        features = one["features"].copy()
        features[3, 4] = array
        return {"features": features}

    return change


def as_it_is(**values):
    return lambda one: values


def cut(name):
    """Nothing of an array is left."""
    return lambda one: {name: one[name][:0]}


def added(number):
    """The counts of a record, the last one larger."""
    return lambda one: {"cluster_counts": np.append(one["cluster_counts"][:-1], one["cluster_counts"][-1] + number)}


def other_kind(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "media", folder)


SHARDS = [
    bad("no such folder", "av_clean: no such folder, expected a dataset", shutil.rmtree),
    bad("no dataset_info.json", "no dataset_info.json or features.json", lambda f: (f / "dataset_info.json").unlink()),
    bad("dataset_info.json is cut off", "metadata cannot be read", lambda f: os.truncate(f / "dataset_info.json", 99)),
    bad(
        "another schema version",
        "version 2.0.0, expected 'viavsp' version 1.0.0",
        replaced("dataset_info.json", '"1.0.0"', '"2.0.0"'),
    ),
    bad("media in place of features", "holds dataset 'viavsp_media'", other_kind),
    bad(
        "features.json of another schema",
        "features.json is not that of viavsp",
        replaced("features.json", '"float16"', '"float32"'),
    ),
    bad("a split is missing", "expected one of ['xtest', 'xtrain', 'xvalid']", without_splits),
    bad("a shard is missing", "shard named by dataset_info.json is missing", shard(pathlib.Path.unlink)),
    bad("a shard is an empty file", "cannot be read", shard(lambda path: path.write_bytes(b""))),
    bad("a shard is cut off", "cannot be read", shard(lambda path: os.truncate(path, path.stat().st_size // 2))),
    bad("a shard is text", "cannot be read", shard(lambda path: path.write_text("<html>404</html>" * 9999))),
    bad("a split without records", "has no records", without_records),
    bad("a record is not an example", "an example of viavsp", stored(b"\xff\xff\xff\xff")),
    bad("a record is empty", "an example of viavsp", stored(b"")),
    bad("NaN features", "has features that are not finite numbers", record(value(np.nan))),
    bad("infinite features", "has features that are not finite numbers", record(value(np.inf))),
    bad("records of another width", "an example of viavsp", other_width),
    bad(
        "a record without frames",
        "has features of shape (0, 12)",
        record(cut("features")),
    ),
    bad("counts that do not sum to the frames", "expected positive counts that sum to its", record(added(1))),
    bad("counts that are not positive", "the smallest -", record(added(-9))),
    bad("an empty transcript", "has an empty transcript", record(as_it_is(transcript=" "))),
    bad("unknown language", "language 'xx' is unknown", record(as_it_is(source_language="xx"))),
]
ROWS = [
    bad("transcript too long for a row", "label tokens, a row holds 40", record(as_it_is(transcript="a b " * 90))),
    bad(
        "clip too long for a row",
        "frames, a row holds 96",
        record(
            lambda one: {"features": np.zeros((200, WIDTH), np.float16), "cluster_counts": np.full(100, 2, np.int32)}
        ),
    ),
]
CLIPS = [
    bad("features in place of media", "holds dataset 'viavsp'", other_kind, CLIPS),
    bad("video of a record is damaged", "not a readable video file", record(as_it_is(video=b"junk")), CLIPS),
    bad("video of a record is empty", "has an empty video", record(as_it_is(video=b"")), CLIPS),
    bad("audio of a record is empty", "has audio of shape (0,)", record(cut("audio")), CLIPS),
    bad(
        "counts that do not sum to the video",
        "frames, expected",
        record(lambda one: {f"cluster_counts_{x}": np.array([30], np.int32) for x in ("av", "audio", "video")}),
        CLIPS,
    ),
]


def read_all(config: ml_collections.ConfigDict, split: str) -> None:
    """Reads one split as training and evaluation do, the training split until the bad record must have come."""
    prompt = load_prompt(config.llm.path, config.llm.end_token)
    if split == "train":
        batches = pipeline.training_batches(read_settings(config).data, prompt)
        for _ in range(60):
            next(batches)
    elif split == "valid":
        list(pipeline.validation_batches(read_settings(config).data, prompt))
    else:
        data, c = read_settings(config).data, config.evaluate
        clips = pipeline.evaluation_records(data, c.names[0], c.split)
        list(pipeline.decoding_batches(data, prompt, clips, c.rows, c.bucket))


def assert_refused(config, case, folder, splits):
    for split in splits:
        with pytest.raises(InputError) as caught:
            read_all(config, split)
        message = str(caught.value)
        assert case.words in message and "\n" not in message
        # Records name themselves where they do not fit a row: rows are a setting.
        assert str(folder) in message or "record " in message


def splits_of(case):
    """Those whose reading meets the fault: decoding has no rows."""
    return ["train", "valid"] if case in ROWS else ["train", "valid", "test"]


@pytest.mark.parametrize(
    ("case", "split"),
    [pytest.param(x, split, id=f"{x.wrong}-{split}") for x in [*SHARDS, *ROWS] for split in splits_of(x)],
)
def test_bad_features_are_refused(folders, media_folders, tmp_path, case, split):
    shutil.copytree(folders[1], tmp_path / "shards")
    (tmp_path / "shards" / "media").symlink_to(media_folders[1] / "media_clean")
    case.make(tmp_path / "shards" / "av_clean")
    assert_refused(small_config(folders[0], tmp_path / "shards"), case, tmp_path, [split])


@each(CLIPS)
def test_bad_media_are_refused(folders, media_folders, tmp_path, case):
    shutil.copytree(media_folders[1], tmp_path / "shards")
    (tmp_path / "shards" / "media").symlink_to(folders[1] / "av_clean")
    case.make(tmp_path / "shards" / "media_clean")
    config = media_config(media_folders[0], tmp_path / "shards", media_folders[2])
    assert_refused(config, case, tmp_path, ["train", "valid", "test"])
