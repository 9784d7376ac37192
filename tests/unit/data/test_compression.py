"""How frames become positions: run lengths against a plain loop, names of sets, and what is drawn for a clip."""

import collections

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from small_media import media_config
from small_run import make_shards, small_config

from viavsp_jax.data import clips, pipeline, records
from viavsp_jax.data.compression import CLUSTERS, Compression, split_name
from viavsp_jax.data.examples import MEDIA
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.run_settings import read_settings

SEVERAL = ("clusters", "pool:3", "clusters+max:1")
RUNS = st.lists(st.integers(1, 9), min_size=1, max_size=20)
WAYS = st.sampled_from(("clusters", *(f"{kind}:{k}" for kind in ("pool", "clusters+max") for k in (1, 2, 3, 7, 50))))


def by_loop(text: str, counts: list[int]) -> list[int]:
    """Frame by frame: a new position where a cluster ends, as far as these matter, or the last one is full."""
    kind, _, most = text.partition(":")
    frames = [number for number, count in enumerate(counts) for _ in range(count)]
    found, cluster = [], None
    for frame in frames:
        ended = kind != "pool" and frame != cluster
        if not found or ended or (most and found[-1] == int(most)):
            found.append(0)
        found[-1] += 1
        cluster = frame
    return found


@hypothesis.given(WAYS, RUNS)
def test_run_lengths_are_those_of_a_loop(text, counts):
    found = Compression.of(text).run_lengths(np.array(counts, np.int32))
    assert found.dtype == np.int32 and found.tolist() == by_loop(text, counts)


@hypothesis.given(WAYS, st.lists(RUNS, min_size=1, max_size=6))
def test_how_many_positions_there_are_of_many_records(text, several):
    counts, runs = np.concatenate(several), np.array(list(map(len, several)))
    found = Compression.of(text).positions(counts, runs)
    assert found.tolist() == [len(by_loop(text, one)) for one in several]


def test_texts():
    for text in ("clusters", "pool:1", "pool:12", "clusters+max:3", "pool:999999999"):
        assert str(Compression.of(text)) == text
    assert Compression.of("clusters") == CLUSTERS and not Compression.of("pool:2").by_clusters
    for text in ("", "pool", "pool:", "pool:0", "pool:02", "pool:1.5", "pool:-1", "pool:٣", "max:2", "clusters:2",
                 "clusters+max", "pool:1000000000", "Clusters", "pool:3 "):  # fmt: skip
        with pytest.raises(ValueError, match="is no compression: expected clusters, clusters.max:K or pool:K"):
            Compression.of(text)


@pytest.mark.parametrize("name, rest, text", [
    ("av_clean_pool3", "av_clean", "pool:3"), ("video_clean_max2", "video_clean", "clusters+max:2"),
    ("av_clean_clusters", "av_clean", "clusters"), ("av_lost25_pool2", "av_lost25", "pool:2"),
    ("/a/b/audio_snr_-5_interferer_1_max12", "/a/b/audio_snr_-5_interferer_1", "clusters+max:12"),
    ("gs://b/media_babble_0db_pool1", "gs://b/media_babble_0db", "pool:1"),
])  # fmt: skip
def test_names_tell_how_frames_become_positions(name, rest, text):
    assert split_name(name) == (rest, Compression.of(text))
    assert name == f"{rest}_{Compression.of(text).suffix}"


@pytest.mark.parametrize("name", ["av_clean", "av_pool3", "pool3", "av_clean_pool", "av_clean_pool0", "av_clean_max",
                                  "x_clean_pool3", "av_clean_pool3_lost25", "av_clean_clusters2"])  # fmt: skip
def test_other_names_tell_nothing_of_it(name):
    assert split_name(name) == (name, None)


@pytest.fixture
def config(folders):
    return small_config(*folders)


@pytest.fixture(scope="module")
def prompt(folders):
    return load_prompt(folders[0], "</s>")


def counts_of(config, split):
    """By id: cluster counts as the shards hold them."""
    source = records.open_split(f"{config.data.path}/av_clean", split)
    return {one["id"]: one["cluster_counts"].tolist() for one in source}


def test_one_is_drawn_for_each_clip_and_epoch(config, tmp_path):
    """By id, epoch and seed alone, as often as any other; all else is as without."""
    config.data.path = str(tmp_path)
    make_shards(tmp_path / "av_clean", train=60)
    stored, size = counts_of(config, "train"), 60
    plain = pipeline._endless(read_settings(config).data, None)
    config.data.compression = SEVERAL
    first, again = (pipeline._endless(read_settings(config).data, None) for _ in range(2))
    drawn = collections.Counter()
    for index in reversed(range(20 * size)):
        one, before = first[index], plain[index]
        assert before["cluster_counts"].tolist() == stored[one["id"]] and one["id"] == before["id"]
        assert np.array_equal(one["features"], before["features"])
        fits = [text for text in SEVERAL if one["cluster_counts"].tolist() == by_loop(text, stored[one["id"]])]
        assert len(fits) == 1  # these clips are long enough to tell
        drawn[fits[0]] += 1
        if index < 2 * size:
            assert np.array_equal(again[index]["cluster_counts"], one["cluster_counts"])
    assert all(count == pytest.approx(20 * size / 3, rel=0.15) for count in drawn.values()) and len(drawn) == 3
    config.seed += 1
    other = {(x["id"], tuple(x["cluster_counts"])) for x in map(first.__getitem__, range(size))}
    of_seed = pipeline._endless(read_settings(config).data, None)
    assert other != {(x["id"], tuple(x["cluster_counts"])) for x in map(of_seed.__getitem__, range(size))}


def test_clips_of_a_trained_encoder_draw_one_last(media_folders):
    """Crop, noise, masks and lost frames are those of a training by one compression."""
    config = media_config(*media_folders)
    config.data.augment.update_from_flattened_dict({
        "noise.probability": 0.5, "drop_audio": 0.3, "drop_video": 0.3, "drop_frames.spans": 2, "mask.times": 1,
    })  # fmt: skip
    source = records.open_split(media_folders[1] / "media_clean", "train", MEDIA)
    plain = clips.ClipLoader(read_settings(config).data, ("av_clean",), "train")
    config.data.compression = SEVERAL
    several = clips.ClipLoader(read_settings(config).data, ("av_clean",), "train")
    drawn = collections.Counter()
    for record in source:
        for epoch in range(15):
            before, one = (loader.load((0, record), epoch) for loader in (plain, several))
            counts = before.pop("cluster_counts").tolist()
            found = one.pop("cluster_counts").tolist()
            fits = [text for text in SEVERAL if found == by_loop(text, counts)]
            assert fits and before.keys() == one.keys()
            assert all(np.array_equal(before[name], one[name]) for name in one)
            if len(fits) == 1:
                drawn[fits[0]] += 1
        assert np.array_equal(several.load((0, record))["cluster_counts"], record["cluster_counts_av"])
    assert len(drawn) == 3 and max(drawn.values()) < 2 * min(drawn.values())


@pytest.mark.parametrize("of_clips", [False, True])
def test_batches_by_clusters_are_as_if_nothing_could_be_chosen(config, media_folders, prompt, of_clips, monkeypatch):
    """Bit for bit: by the counts of the records, which no compression has touched."""
    config = media_config(*media_folders) if of_clips else config

    def batches():
        stream = pipeline.training_batches(read_settings(config).data, prompt)
        found = [next(stream) for _ in range(4)]
        stream.close()
        return found

    found = batches()
    config.data.compression = ("clusters", "clusters")
    drawn = batches()
    monkeypatch.setattr(Compression, "run_lengths", lambda self, counts: counts)
    for one in (found, drawn):
        jax.tree.map(np.testing.assert_array_equal, one, batches())


def test_validation_is_by_the_first_and_decoding_by_what_it_is_told(config, prompt):
    config.data.compression = ("pool:4", "clusters")
    settings = read_settings(config)
    stored = counts_of(config, "valid")
    for row in pipeline.validation_batches(settings.data, prompt):
        # Every position is the mean of four frames but the last one of a clip.
        sizes = [np.bincount(slots[slots < 128]) for slots in row["frame_slot"]]
        assert {int(size) for one in sizes for size in one[one > 0]} <= {1, 2, 3, 4}
        speech = sum(map(np.count_nonzero, sizes))
        assert speech == row["is_speech"].sum()
    expected = sum(len(by_loop("pool:4", counts)) for counts in stored.values())
    assert sum(int(row["is_speech"].sum()) for row in pipeline.validation_batches(settings.data, prompt)) == expected
    for chosen, text in (("", "pool:4"), ("clusters+max:2", "clusters+max:2")):
        config.evaluate.decoding.compression = chosen
        settings = read_settings(config)
        assert settings.evaluation.compression == Compression.of(text)
        for name, own in (("av_clean", text), ("av_clean_pool2", "pool:2"), ("av_clean_clusters", "clusters")):
            clips = pipeline.evaluation_records(settings.data_to_decode, name, "valid")
            found = {one["id"]: one["cluster_counts"].tolist() for one in clips}
            assert found == {id: by_loop(own, counts) for id, counts in stored.items()}


def test_named_sets_of_clips(media_folders):
    """With a share of the video lost, too."""
    config = media_config(*media_folders)
    data, source = (
        read_settings(config).data_to_decode,
        records.open_split(media_folders[1] / "media_clean", "test", MEDIA),
    )
    for name, text in (("video_clean_max2", "clusters+max:2"), ("av_lost40_pool3", "pool:3")):
        plain, modality = name.rpartition("_")[0], name.partition("_")[0]
        for one, same, record in zip(
            *(pipeline.evaluation_records(data, x, "test") for x in (name, plain)), source, strict=True
        ):
            assert one["cluster_counts"].tolist() == by_loop(text, record[f"cluster_counts_{modality}"].tolist())
            assert np.array_equal(one["has_video"], same["has_video"]) and np.array_equal(one["video"], same["video"])
            assert one["has_video"].all() == (modality == "video")
