"""Records that hold the clips themselves: stored exactly, read at random, and not taken for features."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from places import GOLDEN
from small_records import assert_same, example
from small_wav import write_wav

from viavsp_jax.data import media, noise, records
from viavsp_jax.data.examples import MEDIA, Example
from viavsp_jax.runtime.errors import InputError

RECORDED = GOLDEN / "media"
NAMES = ("utt0", "utt1")


def counts(num_frames: int, first: int) -> np.ndarray:
    return np.array([first, num_frames - first], np.int32)


def media_example(name: str, **change) -> Example:
    """A clip of the golden set."""
    num_frames = len(np.load(RECORDED / f"{name}.npz")["frames"])
    return {
        "id": name,
        "video": (RECORDED / f"{name}.mp4").read_bytes(),
        "audio": media.read_audio(RECORDED / f"{name}.wav"),
        "cluster_counts_av": counts(num_frames, 1),
        "cluster_counts_audio": counts(num_frames, 2),
        "cluster_counts_video": counts(num_frames, 3),
        "transcript": f"xin chào {name}",
        "source_language": "vi",
        "target_language": "en",
    } | change


def write(folder: Path, split: str, examples: list[Example]) -> None:
    records.write_shard(records.shard_path(folder, split, 0, 1, MEDIA), examples, MEDIA)
    records.write_metadata(folder, None, [split], MEDIA)


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "media_clean"
    write(folder, "train", [media_example(name) for name in NAMES])
    return folder


def test_what_is_written_is_read_and_decodes_to_the_recorded_frames(dataset):
    source = records.open_split(dataset, "train", MEDIA)
    assert len(source) == 2 and source.width is None
    for reader in (source, pickle.loads(pickle.dumps(source))):
        for index in (1, 0):
            assert_same(reader[index], media_example(NAMES[index]))
            frames = media.decode_video(reader[index]["video"], "clip")
            np.testing.assert_array_equal(frames, np.load(RECORDED / f"{NAMES[index]}.npz")["frames"])
    shard = next(dataset.glob("*array_record*"))
    assert shard.name == "viavsp_media-train.array_record-00000-of-00001"
    raw = sum((RECORDED / f"{name}.{kind}").stat().st_size for name in NAMES for kind in ("mp4", "wav"))
    assert shard.stat().st_size < raw * 1.02 + 200_000


def test_tfds_reads_it(dataset):
    found = list(tfds.builder_from_directory(dataset).as_data_source("train"))
    assert [one["id"].decode() for one in found] == list(NAMES)
    for one in found:
        wanted = media_example(one["id"].decode())
        assert one["video"] == wanted["video"]
        np.testing.assert_array_equal(one["audio"], wanted["audio"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cluster_counts_av": np.array([2, 2], np.int32)}, "cluster_counts_audio that sum to"),
        ({"cluster_counts_video": np.array([2, 2], np.int32)}, "cluster_counts_video that sum to 4"),
        (
            {"cluster_counts_audio": np.array([38, -1], np.int32)},
            "cluster_counts_audio that sum to 37, the smallest -1",
        ),
        ({"cluster_counts_av": np.zeros(0, np.int32)}, "cluster_counts_av that sum to 0"),
        ({"video": b""}, "an empty video"),
        ({"audio": np.zeros(0, np.int16)}, "audio of shape (0,), expected [samples]"),
        ({"transcript": " "}, "an empty transcript"),
    ],
)
def test_invalid_examples_are_refused_by_shard_record_and_id(tmp_path, change, words):
    with pytest.raises(InputError) as caught:
        write(tmp_path, "train", [media_example("utt0"), media_example("utt0", id="bad", **change)])
    for word in ("viavsp_media-train", "record 1 (id 'bad')", words):
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_one_kind_is_not_taken_for_the_other(dataset, tmp_path):
    features = tmp_path / "av_clean"
    records.write_shard(records.shard_path(features, "train", 0, 1), [example(0, np.random.default_rng(0))])
    records.write_metadata(features, 8, ["train"])
    with pytest.raises(InputError, match="media_clean: holds dataset 'viavsp_media' version 1.0.0, expected 'viavsp' "):
        records.open_split(dataset, "train")
    with pytest.raises(InputError, match="av_clean: holds dataset 'viavsp' version 1.0.0, expected 'viavsp_media' "):
        records.open_split(features, "train", MEDIA)
    assert records.complete_splits(dataset) == {} == records.complete_splits(features, MEDIA)
    assert records.complete_splits(dataset, MEDIA) == {"train": 1}


def test_damaged_bytes_are_named(dataset):
    path = records.shard_path(dataset, "train", 0, 1, MEDIA)
    writer = records.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"\xff\xff\xff\xff")
    writer.close()
    with pytest.raises(InputError, match=r"record 0 \(record 0 of split 'train'.* an example of viavsp_media \("):
        records.open_split(dataset, "train", MEDIA)[0]


def test_babble_comes_from_the_waveforms_of_other_records(tmp_path):
    """Of three records one is silent: the other's waveform, turned, is all that is heard."""
    silent = np.zeros(9000, np.int16)
    write(
        tmp_path, "train", [media_example("utt0"), media_example("utt1"), media_example("utt0", id="s", audio=silent)]
    )
    source = records.open_split(tmp_path, "train", MEDIA)
    found = noise.babble_of(source, "utt0", 12_000, noise.rng_for("utt0", 1))
    assert found.dtype == np.int16 and found.shape == (12_000,)
    other = source[1]["audio"]
    starts = np.flatnonzero(other == found[0])
    assert any(np.array_equal(found, np.resize(np.roll(other, -start), 12_000)) for start in starts)
    np.testing.assert_array_equal(found, noise.babble_of(source, "utt0", 12_000, noise.rng_for("utt0", 1)))
    assert (found != noise.babble_of(source, "utt0", 12_000, noise.rng_for("utt0", 1, epoch=1))).any()
    write(tmp_path, "valid", [media_example("utt0"), media_example("utt0", id="s", audio=silent)])
    source = records.open_split(tmp_path, "valid", MEDIA)
    with pytest.raises(InputError, match=r"babble for 'utt0' needs another clip with sound, tried \['s'\]"):
        noise.babble_of(source, "utt0", 100, noise.rng_for("utt0", 1))


def test_recordings_are_cut_at_random_and_repeated(tmp_path):
    write_wav(tmp_path / "a/long.wav", np.arange(1, 2001))
    write_wav(tmp_path / "short.wav", np.arange(-10, 0))
    recordings, rng = noise.Recordings(tmp_path), noise.rng_for("clip", 0)
    assert [Path(path).name for path in recordings.paths] == ["long.wav", "short.wav"]
    starts = set()
    for part in (noise.draw_part(recordings, 500, rng, tmp_path) for _ in range(40)):
        assert part.dtype == np.int16 and part.shape == (500,)
        starts.add(int(part[0]))
        size, first = (2000, 1) if part[0] > 0 else (10, -10)
        np.testing.assert_array_equal(part - first, (part[0] - first + np.arange(500)) % size)
    assert len(starts) > 15 and min(starts) < 0 < max(starts)
    again, found = (
        noise.draw_part(one, 500, noise.rng_for("clip", 0), tmp_path)
        for one in (noise.Recordings(tmp_path), recordings)
    )
    np.testing.assert_array_equal(again, found)


def test_recordings_with_silence_and_of_other_formats(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: no .wav file there, expected a folder with recordings"):
        noise.Recordings(tmp_path)
    write_wav(tmp_path / "half.wav", np.concatenate([np.zeros(3000), np.ones(1000)]))
    recordings = noise.Recordings(tmp_path)
    parts = [noise.draw_part(recordings, 100, np.random.default_rng(seed), tmp_path) for seed in range(20)]
    assert all(part.any() for part in parts)
    write_wav(tmp_path / "half.wav", np.zeros(300))
    with pytest.raises(InputError, match=f"{tmp_path}: 10 parts in a row are silent"):
        noise.draw_part(recordings, 100, np.random.default_rng(0), tmp_path)
    write_wav(tmp_path / "sub/other.wav", np.ones(300), rate=8000)
    with pytest.raises(InputError, match="sub/other.wav: audio is 8000 Hz.* expected 16000 Hz"):
        noise.Recordings(tmp_path)
