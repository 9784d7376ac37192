"""Packed rows against the records they were made of."""

import collections

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from small_run import DEMO_LLAMA, WIDTH, make_example, make_shards, small_config

from benchmarks import vasr_clips
from configs import final
from viavsp_jax import sharding
from viavsp_jax.data import packing, pipeline, records
from viavsp_jax.data.examples import FEATURES
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.run_settings import follow_devices, read_settings
from viavsp_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def prompt():
    return load_prompt(DEMO_LLAMA, "</s>")


@pytest.fixture
def config(tmp_path):
    make_shards(tmp_path / "av_clean")
    make_shards(tmp_path / "video_clean", seed=1)
    return small_config(tmp_path / "llm", tmp_path)


def unpack(batch, prompt):
    """Every utterance of a batch as (transcript, frame count, means by position), read off the arrays alone."""
    found = []
    for row in range(len(batch["tokens"])):
        arrays = {name: value[row] for name, value in batch.items()}
        instruction = prompt.instruction("vi", "vi")
        start = len(instruction) * arrays["segment_ids"].any()
        assert np.array_equal(np.flatnonzero(arrays["segment_ids"] == packing.INSTRUCTION), np.arange(start))
        assert np.array_equal(arrays["positions"][:start], np.arange(start))
        assert arrays["tokens"][:start].tolist() == instruction[:start]
        for segment in range(packing.INSTRUCTION + 1, arrays["segment_ids"].max() + 1):
            (places,) = np.nonzero(arrays["segment_ids"] == segment)
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1)), "utterances are contiguous"
            assert np.array_equal(arrays["positions"][places], start + np.arange(len(places)))
            labels = [
                i for i in range(len(arrays["targets"]))
                if arrays["weights"][i] > 0 and arrays["label_index"][i] in places
            ]  # fmt: skip
            targets = arrays["targets"][labels]
            assert arrays["weights"][labels].sum() == pytest.approx(1)
            # A label token is read one position after the position that predicts it.
            after = arrays["label_index"][labels][:-1] + 1
            assert np.array_equal(arrays["tokens"][after], targets[:-1])
            frames = np.isin(arrays["frame_slot"], places)
            slots = arrays["frame_slot"][frames]
            assert arrays["is_speech"][slots].all()
            assert set(slots) == set(places[arrays["is_speech"][places]])
            text = arrays["tokens"][places[~arrays["is_speech"][places]]]
            assert text.tolist() == targets[:-1].tolist()
            counts = tuple(np.unique(slots, return_counts=True)[1])
            found.append((prompt.text(targets.tolist()), counts, arrays["features"][frames]))
    return found


def test_rows_hold_the_records_exactly(config, prompt):
    config.data.train = ("av_clean", "video_clean")
    source = [r for name in config.data.train for r in records.open_split(f"{config.data.path}/{name}", "valid")]
    expected = {r["transcript"]: (tuple(r["cluster_counts"]), r["features"]) for r in source}
    found = [
        u for batch in pipeline.validation_batches(read_settings(config).data, prompt) for u in unpack(batch, prompt)
    ]
    assert sorted(text for text, *_ in found) == sorted(expected)
    for text, counts, features in found:
        assert counts == expected[text][0]
        assert np.array_equal(features, expected[text][1].astype(np.float32))


def test_padding_is_harmless(config, prompt):
    last = list(pipeline.validation_batches(read_settings(config).data, prompt))[-1]
    shape = packing.RowShape(**config.data.row)
    padding = last["weights"] == 0
    assert padding.any() and not last["label_index"][padding].any()
    assert last["tokens"].shape == last["segment_ids"].shape == (config.data.rows, shape.positions)
    used = np.isin(last["frame_slot"], np.arange(shape.positions))
    assert np.array_equal(used, np.abs(last["features"]).sum(-1) > 0)


def test_empty_rows_fill_up_a_split_that_is_smaller_than_a_batch(config, prompt):
    config.data.rows = 8
    (batch,) = pipeline.validation_batches(read_settings(config).data, prompt)
    filled = batch["segment_ids"].any(1)
    assert filled.tolist() == [True] * 5 + [False] * 3
    for name, value in batch.items():
        expected = config.data.row.positions if name == "frame_slot" else 0
        assert len(value) == 8 and (value[~filled] == expected).all(), name


def joined(parts, own):
    """One batch from those of several processes, each of which holds the rows in its `own`."""
    order = np.argsort(np.concatenate(own))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[order], *parts)


def test_batches_do_not_depend_on_the_number_of_processes(config, prompt):
    config.data.rows, count = 4, 6  # all open rows more than once, and more than an epoch
    batches = pipeline.training_batches(read_settings(config).data, prompt)
    whole = [next(batches) for _ in range(count)]
    for own in ([0, 1], [2, 3]), ([0, 2], [1, 3]), ([3], [0], [1], [2]):
        processes = [pipeline.training_batches(read_settings(config).data, prompt, rows) for rows in own]
        for number, expected in enumerate(whole):
            if number == count - 1:  # after a restart
                places = {row: place for process in processes for row, place in process.places().items()}
                own = [[0], [1, 2], [3]]  # other processes than before
                processes = [pipeline.training_batches(read_settings(config).data, prompt, rows) for rows in own]
                for process in processes:
                    process.move(places)
            found = joined([next(process) for process in processes], own)
            jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_processes_that_share_rows_read_the_same(config, prompt):
    batches = [pipeline.training_batches(read_settings(config).data, prompt, [1]) for _ in range(2)]
    for _ in range(3):
        jax.tree.map(np.testing.assert_array_equal, *map(next, batches))


def test_each_row_has_records_of_its_own(config, prompt):
    stored = [r["transcript"] for r in records.open_split(f"{config.data.path}/av_clean", "valid")]
    seen = {0: [], 1: []}
    for batch in pipeline.validation_batches(read_settings(config).data, prompt):
        for row, texts in seen.items():
            texts += [text for text, *_ in unpack({name: value[[row]] for name, value in batch.items()}, prompt)]
    assert seen == {0: stored[0::2], 1: stored[1::2]}


def test_rows_of_the_final_recipe_are_full(tmp_path):
    config = final.get_config()
    config.data.path, config.data.feature_width = str(tmp_path), 2
    vasr_clips.write_shards(tmp_path, {"train": vasr_clips.draw_clips(1000, 2, 2000)})
    mesh = AbstractMesh((8, 1, 1), sharding.AXES)
    data = follow_devices(read_settings(config), mesh, 15).data
    batches = pipeline.training_batches(data, vasr_clips.make_prompt(2000))
    several = [next(batches) for _ in range(8)]
    positions, frames, labels = (
        np.mean([used(batch) for batch in several])
        for used in (
            lambda batch: batch["segment_ids"] > 0,
            lambda batch: batch["frame_slot"] < config.data.row.positions,
            lambda batch: batch["weights"] > 0,
        )
    )
    assert positions >= 0.95, f"{positions:.4f} of positions, {frames:.4f} of frames, {labels:.4f} of labels"


def test_training_sees_every_clip_each_epoch_in_new_order(config, prompt):
    batches = pipeline.training_batches(read_settings(config).data, prompt)
    seen = []
    while len(seen) < 60:
        seen += [text for text, *_ in unpack(next(batches), prompt)]
    epochs = collections.Counter(seen)
    assert len(epochs) == 24 and min(epochs.values()) >= 2
    order = [text for text, *_ in unpack(next(pipeline.training_batches(read_settings(config).data, prompt)), prompt)]
    stored = [r["transcript"] for r in records.open_split(f"{config.data.path}/av_clean", "train")]
    assert order != stored[: len(order)]
    assert seen[: len(order)] == order, "the same seed gives the same order"
    config.seed = 1
    assert order != [
        text for text, *_ in unpack(next(pipeline.training_batches(read_settings(config).data, prompt)), prompt)
    ]


def test_state_restores_the_stream_bit_for_bit(config, prompt):
    batches = pipeline.training_batches(read_settings(config).data, prompt)
    for _ in range(5):
        next(batches)
    places = batches.places()
    expected = [next(batches) for _ in range(6)]
    again = pipeline.training_batches(read_settings(config).data, prompt)
    again.move(places)
    for batch in expected:
        for name, value in next(again).items():
            assert np.array_equal(value, batch[name]), name


def test_a_row_holds_no_more_clips_than_asked(config, prompt):
    config.data.row.clips = 2
    batches = pipeline.training_batches(read_settings(config).data, prompt)
    counts = [next(batches)["segment_ids"].max(1) for _ in range(4)]
    assert np.max(counts) == packing.INSTRUCTION + 2


@pytest.mark.parametrize(
    ("field", "what"),
    [("labels", "label tokens"), ("frames", "frames"), ("positions", "positions"), ("window", "positions")],
)
def test_a_record_longer_than_a_row_is_named(config, prompt, field, what):
    config.data.row[field] = 9
    with pytest.raises(InputError, match=rf"record \w+ needs \d+ {what}, a row holds 9: raise config.data.row.{field}"):
        next(pipeline.training_batches(read_settings(config).data, prompt))


def test_wrong_width_and_missing_folders(config, prompt):
    config.data.feature_width = WIDTH + 1
    with pytest.raises(InputError, match="av_clean holds features of width 12, but config.data.feature_width is 13"):
        pipeline.training_batches(read_settings(config).data, prompt)
    config.data.feature_width = WIDTH
    config.data.train = ("audio_clean",)
    with pytest.raises(InputError, match="audio_clean: no such folder"):
        pipeline.training_batches(read_settings(config).data, prompt)
    config.data.path = ""
    with pytest.raises(InputError, match="config.data.path is not set"):
        pipeline.training_batches(read_settings(config).data, prompt)


def test_decoding_batches_hold_each_clip_once_in_few_sizes(config, prompt):
    seen, sizes = [], set()
    data, c = read_settings(config).data, config.evaluate
    clips = pipeline.evaluation_records(data, "av_clean", c.split)
    for group, batch in pipeline.decoding_batches(data, prompt, clips, c.rows, c.bucket):
        sizes.add((batch["features"].shape, batch["tokens"].shape))
        for row, record in enumerate(group):
            seen.append(record["id"])
            length = batch["lengths"][row]
            instruction = prompt.instruction("vi", "vi")
            assert length == len(instruction) + len(record["cluster_counts"])
            assert batch["tokens"][row, : len(instruction)].tolist() == instruction
            assert batch["is_speech"][row].nonzero()[0].tolist() == list(range(len(instruction), length))
            frames = len(record["features"])
            assert np.array_equal(batch["features"][row, :frames], record["features"].astype(np.float32))
            assert (batch["frame_slot"][row, frames:] == batch["tokens"].shape[1]).all()
    assert sorted(seen) == sorted(r["id"] for r in records.open_split(f"{config.data.path}/av_clean", "test"))
    for features, tokens in sizes:
        assert features[0] == config.evaluate.rows and features[1] % 32 == 0 and tokens[1] % 32 == 0


def test_features_reach_the_model_in_its_dtype(config, prompt):
    config.dtype = "bfloat16"
    assert next(pipeline.training_batches(read_settings(config).data, prompt))["features"].dtype == np.dtype("bfloat16")


def test_examples_are_valid_records():
    example = make_example(np.random.default_rng(0), "x", "một hai")
    FEATURES.validate(example, "memory", 0)


@pytest.mark.parametrize(("weights", "share"), [((), 0.5), ((3, 1), 0.75), ((0.2, 1.8), 0.1)])
def test_weights_say_how_often_a_set_is_drawn(config, weights, share):
    """Also in every row of a batch, which takes every eighth record."""
    config.data.train, config.data.weights = ("av_clean", "video_clean"), weights
    drawn = pipeline._endless(read_settings(config).data, None)
    first = np.array([drawn[index]["id"].startswith("train0_") for index in range(1000)])
    assert first.mean() == pytest.approx(share, abs=0.02 if not weights else 1e-9)
    for row in range(8):
        assert first[row::8].mean() == pytest.approx(share, abs=0.13)


def test_weighted_batches_go_on_where_they_were(config, prompt):
    config.data.train, config.data.weights = ("av_clean", "video_clean"), (2, 1)
    data = read_settings(config).data
    first = pipeline.training_batches(data, prompt)
    for _ in range(7):
        next(first)
    again = pipeline.training_batches(data, prompt)
    again.move(first.places())
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, next(first), next(again))
    first.close()
    again.close()


def test_sets_of_several_folders(config, prompt, tmp_path):
    make_shards(tmp_path / "elsewhere" / "av_clean", seed=2)
    config.data.train = ("av_clean", f"{tmp_path}/elsewhere/av_clean")
    data = read_settings(config).data
    assert [len(folder.parts) for folder in pipeline.shard_folders(data)] == [
        len(tmp_path.parts) + 1,
        len(tmp_path.parts) + 2,
    ]
    found = {text for row in pipeline.validation_batches(data, prompt) for text, *_ in unpack(row, prompt)}
    assert len(found) == 10
    config.data.path, config.data.train = "", config.data.train[1:]
    assert pipeline.shard_folders(read_settings(config).data) == [tmp_path / "elsewhere" / "av_clean"]


def test_every_label_knows_its_modality(config, prompt):
    config.data.train = ("av_clean", "video_clean")
    data = read_settings(config).data
    batch = next(pipeline.training_batches(data, prompt))
    assert {*batch["modality"][batch["weights"] > 0].tolist()} == {0, 2}
