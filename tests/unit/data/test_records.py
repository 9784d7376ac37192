import pickle

import numpy as np
import pytest
from odd_folders import ODD_NAMES
from small_records import WIDTH, assert_same, example

from viavsp_jax.data import records
from viavsp_jax.data.examples import FEATURES, Kind
from viavsp_jax.runtime.errors import InputError


@pytest.fixture
def dataset(tmp_path):
    """Two splits; train has three shards of 2, 3 and 4 records."""
    rng, folder = np.random.default_rng(0), tmp_path / "av_clean"
    examples, shards = [], []
    for index, size in enumerate((2, 3, 4)):
        shards.append([example(10 * index + i, rng, num_frames=3 + i) for i in range(size)])
        assert records.write_shard(records.shard_path(folder, "train", index, 3), shards[-1]) == size
        examples += shards[-1]
    records.write_shard(records.shard_path(folder, "test", 0, 1), [example(99, rng)])
    records.write_metadata(folder, WIDTH, ["train", "test"])
    return folder, examples


def test_what_is_written_is_read_at_random_and_after_pickling(dataset):
    folder, examples = dataset
    source = records.open_split(folder, "train")
    assert len(source) == 9
    for index in np.random.default_rng(1).permutation(9):
        assert_same(source[index], examples[index])
    assert_same(source[-1], examples[-1])
    with pytest.raises(IndexError):
        source[9]
    copy = pickle.loads(pickle.dumps(source))  # as Grain's worker processes get it
    assert_same(copy[4], examples[4])
    assert [found["id"] for found in copy] == [wanted["id"] for wanted in examples]


@pytest.mark.parametrize("name", [*ODD_NAMES, "x[0:1]"])
def test_folders_of_any_name(tmp_path, name):
    rng, folder = np.random.default_rng(0), tmp_path / name
    path = records.shard_path(folder, "train", 0, 1)
    folder.mkdir()
    for left in (f".{path.name}.1.tmp", f".{path.name}x.1.tmp"):
        (folder / left).touch()
    records.write_shard(path, [example(1, rng), wanted := example(2, rng)])
    assert [file.name for file in folder.glob(".*")] == [f".{path.name}x.1.tmp"], "of another shard"
    records.write_metadata(folder, WIDTH, ["train"])
    assert_same(records.open_split(folder, "train")[1], wanted)


def test_records_are_stored_one_by_one_and_without_waste(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(76, 1024)).astype(np.float16)
    one = example(0, rng) | {"features": features, "cluster_counts": np.full(38, 2, np.int32)}
    path = records.shard_path(tmp_path, "train", 0, 1)
    records.write_shard(path, [one] * 20)
    assert path.stat().length < 20 * features.nbytes * 1.02 + 200_000  # ArrayRecord's own blocks are 64 KiB
    assert b"group_size:1," in path.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cluster_counts": np.array([2, 2], np.int32)}, "sum to 4"),
        ({"cluster_counts": np.array([6, -1], np.int32)}, "the smallest -1"),
        ({"cluster_counts": np.array([5, 0], np.int32)}, "the smallest 0"),
        ({"features": np.full((5, WIDTH), np.nan, np.float16)}, "not finite"),
        ({"features": np.full((5, WIDTH), -np.inf, np.float16)}, "not finite"),
        ({"features": np.zeros((0, WIDTH), np.float16)}, "features of shape (0, 8)"),
        ({"transcript": " "}, "empty transcript"),
    ],
)
def test_invalid_examples_are_refused_by_shard_record_and_id(tmp_path, change, words):
    rng = np.random.default_rng(0)
    good, bad = example(1, rng), example(2, rng) | change
    FEATURES.validate(good, "a", 0)
    FEATURES.validate(good | {"features": np.full((5, WIDTH), 65504, np.float16)}, "a", 0)
    path = records.shard_path(tmp_path, "train", 0, 1)
    with pytest.raises(InputError) as caught:
        records.write_shard(path, [good, bad])
    for word in (str(path), "record 1", "'clip-2'", words):
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir()), "neither the shard nor a temporary file may be left"


def test_a_stored_record_is_validated_when_read(dataset, monkeypatch):
    folder, examples = dataset
    bad = examples[3] | {"cluster_counts": np.array([1], np.int32)}
    with monkeypatch.context() as patch:
        patch.setattr(Kind, "validate", lambda *_: None)
        records.write_shard(records.shard_path(folder, "train", 1, 3), [examples[2], bad, examples[4]])
    source = records.open_split(folder, "train")
    assert_same(source[2], examples[2])
    with pytest.raises(InputError, match=r"train.array_record-00001-of-00003: record 1 \(id 'clip-11'\)"):
        source[3]


def test_damaged_files_are_named_not_traced(dataset):
    folder, examples = dataset
    path = records.shard_path(folder, "train", 1, 3)
    content = bytearray(path.read_bytes())
    damaged = content.copy()
    start = content.index("số 11".encode())
    damaged[start - 20 : start] = bytes(20)
    path.write_bytes(bytes(damaged))
    source = records.open_split(folder, "train")
    with pytest.raises(InputError) as caught:
        for index in (2, 3, 4):
            source[index]
    for word in (str(path), "split 'train'", "cannot be read", "record 1 (record 3 of", str(folder)):
        assert word in str(caught.value)
    assert_same(source[0], examples[0])  # other shards are not affected

    for size in (0, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(bytes(content[:size]))
        with pytest.raises(InputError, match="record 3 of split 'train'"):
            records.open_split(folder, "train")[3]


def test_bytes_that_are_no_example_are_named(dataset):
    folder, _ = dataset
    path = records.shard_path(folder, "test", 0, 1)
    schema = FEATURES.schema(WIDTH + 1)
    wide = example(0, np.random.default_rng(0)) | {"features": np.zeros((5, WIDTH + 1), np.float16)}
    for content in (b"\xff\xff\xff\xff", b"", schema.serialize_example(wide)):
        writer = records.ArrayRecordWriter(str(path), "group_size:1")
        writer.write(content)
        writer.close()
        with pytest.raises(InputError, match=r"record 0 \(record 0 of split 'test'.*features of width 8"):
            records.open_split(folder, "test")[0]
    records.write_shard(path, [])  # fewer records than the metadata promises
    with pytest.raises(InputError, match="record 0 of split 'test'"):
        records.open_split(folder, "test")[0]


def test_open_split_says_what_is_missing(dataset, tmp_path):
    folder, _ = dataset
    with pytest.raises(InputError, match="nowhere: no such folder"):
        records.open_split(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"no split 'valid', expected one of \['test', 'train'\]"):
        records.open_split(folder, "valid")
    (folder / "viavsp-train.array_record-00001-of-00003").unlink()
    with pytest.raises(InputError, match="viavsp-train.array_record-00001-of-00003: shard named by"):
        records.open_split(folder, "train")
    assert len(records.open_split(folder, "test")) == 1
    with pytest.raises(InputError, match="split 'train' has shards missing"):
        records.write_metadata(folder, WIDTH, ["train"])
    (folder / "features.json").unlink()
    with pytest.raises(InputError, match=r"no dataset_info.json or features.json"):
        records.open_split(folder, "test")


@pytest.mark.parametrize(
    ("file", "before", "after", "words"),
    [
        (
            "dataset_info.json",
            '"viavsp"',
            '"mnist"',
            "holds dataset 'mnist' version 1.0.0, expected 'viavsp'",
        ),
        ("dataset_info.json", '"1.0.0"', '"2.0.0"', "version 2.0.0, expected 'viavsp' version 1.0.0"),
        ("features.json", '"float16"', '"float32"', "features.json is not that of viavsp 1.0.0"),
        ("features.json", '"transcript"', '"sentence"', "features.json is not that of viavsp 1.0.0"),
        ("features.json", '"features": {', '"feature": {', "metadata cannot be read"),
        ("dataset_info.json", "{", "[", "metadata cannot be read"),
        ("features.json", "{", "[", "metadata cannot be read"),
    ],
)
def test_a_dataset_that_is_not_ours_is_refused(dataset, file, before, after, words):
    folder, _ = dataset
    text = (folder / file).read_text()
    assert before in text
    (folder / file).write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match="(?s)" + words):
        records.open_split(folder, "train")


def test_splits_are_complete_only_with_all_shards(dataset):
    folder, _ = dataset
    assert records.complete_splits(folder) == {"test": 1, "train": 3}
    records.shard_path(folder, "train", 0, 3).unlink()
    assert records.complete_splits(folder) == {"test": 1}
