"""Clips of media shards against the functions of media and noise, one by one, and the rows that hold them."""

import numpy as np
import pytest
from etils import epath
from small_corpus import heard_as
from small_media import LONGEST, media_config, write_recordings

from viavsp_jax.data import clips, lost, media, noise, packing, pipeline, records
from viavsp_jax.data.examples import MEDIA
from viavsp_jax.data.features import audio_features, center_crop
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.experiment import load_experiment
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError

NAMES = ("av_clean", "audio_clean", "video_clean")


@pytest.fixture
def config(media_folders):
    return media_config(*media_folders)


@pytest.fixture(scope="module")
def source(media_folders):
    return records.open_split(media_folders[1] / "media_clean", "train", MEDIA)


def loader(config, names=("av_clean",), **augment):
    config.data.augment.update_from_flattened_dict(augment)
    return clips.ClipLoader(read_settings(config).data, names, "train")


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_clips_as_they_are(config, source):
    found = list(loader(config, NAMES).clips())
    assert len(found) == 3 * len(source)
    for number, clip in enumerate(found):
        modality, record = ("av", "audio", "video")[number // len(source)], source[number % len(source)]
        frames = media.decode_video(record["video"], "")
        assert clip["id"] == record["id"] and clip["transcript"] == record["transcript"]
        assert np.array_equal(clip["cluster_counts"], record[f"cluster_counts_{modality}"])
        assert clip["has_audio"] == (modality != "video")
        assert clip["has_video"].tolist() == [modality != "audio"] * len(frames)
        audio, video = audio_features(record["audio"], len(frames)), frames[:, 4:92, 4:92]
        assert np.array_equal(clip["audio"], audio if clip["has_audio"] else np.zeros_like(audio))
        assert np.array_equal(clip["video"], video if modality != "audio" else np.zeros_like(video))


def test_audio_features_are_of_the_samples_that_the_encoder_hears(config, source, media_folders, tmp_path):
    config.encoder.path = str(heard_as(media_folders[2], "float", tmp_path / "encoder"))
    data = load_experiment(config).settings.data
    for clip, record in zip(clips.ClipLoader(data, ("av_clean",), "train").clips(), source, strict=True):
        as_floats, as_int16 = (audio_features(record["audio"], len(clip["audio"]), name) for name in ("float", "int16"))
        assert np.array_equal(clip["audio"], as_floats) and not np.array_equal(as_floats, as_int16)


def test_what_is_drawn_follows_from_id_epoch_and_seed(config, source):
    settings = {"noise.probability": 0.5, "drop_audio": 0.3, "drop_video": 0.3}
    first = loader(config, **settings)
    size = len(source)
    epochs = [{clip["id"]: clip for clip in map(first.augmented().__getitem__, range(e * size, (e + 1) * size))}
              for e in (0, 1)]  # fmt: skip
    assert epochs[0].keys() == epochs[1].keys() == {record["id"] for record in source}
    different = [name for name in epochs[0] if not same(epochs[0][name], epochs[1][name])]
    assert len(different) >= size - 1
    # In another order, out of more folders, by another loader: the same.
    again = loader(config, ("video_clean", "av_clean"))
    for number, record in enumerate(source):
        for epoch in (0, 1):
            assert same(again.load((1, source[number]), epoch), epochs[epoch][record["id"]])
    config.seed += 1
    other = loader(config)
    assert not all(same(other.load((0, record), 0), epochs[0][record["id"]]) for record in source)


def test_every_frame_of_a_clip_is_cropped_and_flipped_alike(config, source):
    places = set()
    record, load = source[0], loader(config).load
    frames = media.decode_video(record["video"], "")
    for epoch in range(60):
        video = load((0, record), epoch)["video"]
        fits = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if np.array_equal(video, frames[:, top : top + 88, left : left + 88][:, :, :: -1 if flip else 1])
        ]
        assert len(fits) == 1
        places.update(fits)
    tops, lefts, flips = (set(one) for one in zip(*places, strict=True))
    assert len(tops) > 7 and len(lefts) > 7 and flips == {False, True} and len(places) > 35


def test_modality_dropout(config, source):
    load = loader(config, NAMES, drop_audio=0.2, drop_video=0.5).load
    kept = [load((0, source[0]), epoch) for epoch in range(400)]
    for clip in kept:
        assert clip["has_video"].all() == clip["has_video"].any()
        clip["has_video"] = clip["has_video"].all()
    assert 0.14 < np.mean([not clip["has_audio"] for clip in kept]) < 0.26
    assert 0.42 < np.mean([not clip["has_video"] for clip in kept]) < 0.58
    assert all(clip["has_audio"] or clip["has_video"] for clip in kept)
    for clip in kept:
        modality = "av" if clip["has_audio"] and clip["has_video"] else "audio" if clip["has_audio"] else "video"
        assert np.array_equal(clip["cluster_counts"], source[0][f"cluster_counts_{modality}"])
    # A clip that has only one modality keeps it.
    for number, has_audio in ((1, True), (2, False)):
        assert {load((number, source[0]), epoch)["has_audio"] for epoch in range(30)} == {has_audio}


def noise_in(config, source, monkeypatch, **augment):
    """(speech, noise added, what SNR was asked for) of 200 epochs of the first clip, None where it stayed clean."""
    found = []

    def record_mix(speech, added, snr_db):
        found[-1] = (speech, added, snr_db)
        return speech

    monkeypatch.setattr(noise, "mix", record_mix)
    load = loader(config, **augment).load
    for epoch in range(200):
        found.append(None)
        load((0, source[0]), epoch)
    return found


def test_babble_of_other_clips(config, source, monkeypatch):
    settings = {"noise.probability": 0.25, "noise.snr_db": (-5.0, 10.0)}
    found = noise_in(config, source, monkeypatch, **settings)
    noisy = [one for one in found if one is not None]
    assert 0.17 < len(noisy) / len(found) < 0.33
    assert {snr_db for *_, snr_db in noisy} == {-5.0, 10.0}
    assert all(np.array_equal(speech, source[0]["audio"]) for speech, *_ in noisy)
    assert len({added.tobytes() for _, added, _ in noisy}) == len(noisy)


def test_how_many_talk_is_drawn_for_each_clip(config, source, monkeypatch):
    """One talker is heard as in its own clip, from some place on; the sum of two is in none."""
    settings = {"noise.probability": 1.0, "noise.talkers": (1, 2)}
    alone = []
    for _, added, _ in noise_in(config, source, monkeypatch, **settings):
        voices = [np.resize(np.concatenate([one["audio"]] * 2), 4 * len(added)) for one in source]
        alone.append(any(added[:400].tobytes() in voice.tobytes() for voice in voices))
    assert 0.4 < np.mean(alone) < 0.6


def test_noise_of_a_folder_with_recordings(config, source, monkeypatch, tmp_path):
    folder = write_recordings(tmp_path / "street")
    recordings = [media.read_audio(path) for path in sorted(folder.iterdir())]
    both = {"noise.probability": 1.0, "noise.kinds": (str(folder), "babble")}
    from_folder = [
        any(added[:1000].tobytes() in np.tile(one, 3).tobytes() for one in recordings)
        for _, added, _ in noise_in(config, source, monkeypatch, **both)
    ]
    assert 0.3 < np.mean(from_folder) < 0.7


def test_noise_reaches_the_encoder_at_the_ratio_asked_for(config, source):
    load = loader(config, **{"noise.probability": 1.0, "noise.snr_db": (0.0,)}).load
    clip, frames = load((0, source[0]), 0), len(media.decode_video(source[0]["video"], ""))
    rng = noise.rng_for(source[0]["id"], config.seed, 0)
    rng.integers(9, size=2), rng.random(), rng.random(), rng.random(), rng.integers(1), rng.integers(1)
    speech = source[0]["audio"]
    added = noise.babble_of(source, source[0]["id"], len(speech), rng)
    assert np.array_equal(clip["audio"], audio_features(noise.mix(speech, added, 0.0), frames))


def test_noise_that_is_not_there(config):
    with pytest.raises(InputError, match="/none: no .wav file there"):
        loader(config, **{"noise.probability": 0.5, "noise.kinds": ("/none",)})


@pytest.mark.parametrize("name", ["clean", "smell_clean", "av_"])
def test_a_name_that_means_nothing(config, name):
    with pytest.raises(InputError, match=f"'{name}' in the config names no clips"):
        loader(config, (name,))


def test_features_in_place_of_media(config, folders, tmp_path):
    config.data.path = str(tmp_path)
    (tmp_path / "media_features").symlink_to(folders[1] / "av_clean")
    with pytest.raises(InputError, match="holds dataset 'viavsp' .*expected 'viavsp_media'"):
        loader(config, ("av_features",))


def test_a_video_of_another_length_than_its_counts(config, source):
    record = source[0] | {"cluster_counts_av": np.append(source[0]["cluster_counts_av"], 2).astype(np.int32)}
    with pytest.raises(InputError, match="media_clean: the video of 'train0_0' has .* frames, expected"):
        loader(config).load((0, record))


def test_rows_of_clips(config, source):
    prompt, shape = load_prompt(config.llm.path, "</s>"), packing.RowShape(**config.data.row)
    records_of = {record["transcript"]: record for record in source}
    batches = pipeline.packed_batches(
        loader(config).clips(), packing.ToUtterance(prompt, shape, np.float32, of_clips=True), rows=2
    )
    seen = 0
    for batch in batches:
        assert batch["video"].shape == (2, 2, LONGEST, 88, 88) and batch["audio"].shape == (2, 2, LONGEST, 104)
        for row in range(2):
            used = max(batch["segment_ids"][row].max() - packing.INSTRUCTION, 0)
            assert batch["has_audio"][row].tolist() == [number < used for number in range(2)]
            assert np.array_equal(batch["has_video"][row], batch["frame_slot"][row] < shape.positions)
            assert (batch["frame_slot"][row, used:] == shape.positions).all() and not batch["video"][row, used:].any()
            for number in range(used):
                seen += 1
                segment = packing.INSTRUCTION + 1 + number
                own = batch["segment_ids"][row] == segment
                speech = np.flatnonzero(own & batch["is_speech"][row])
                owner = batch["segment_ids"][row, batch["label_index"][row]] == segment
                ids = batch["targets"][row][owner & (batch["weights"][row] > 0)]
                record = records_of[prompt.text(ids[1:].tolist())]
                frames = media.decode_video(record["video"], "")
                slots = batch["frame_slot"][row, number]
                assert np.array_equal(slots[: len(frames)], np.repeat(speech, record["cluster_counts_av"]))
                assert (slots[len(frames) :] == shape.positions).all()
                assert np.array_equal(batch["video"][row, number, : len(frames)], center_crop(frames))
                assert not batch["video"][row, number, len(frames) :].any()
    assert seen == len(source)


def test_a_clip_that_is_too_long(config):
    config.data.row.frames = 2 * 8
    shape, prompt = packing.RowShape(**config.data.row), load_prompt(config.llm.path, "</s>")
    to_utterance = packing.ToUtterance(prompt, shape, np.float32, of_clips=True)
    with pytest.raises(InputError, match="needs 1. frames, each clip of a row holds 8: raise config.data.row.frames"):
        for clip in loader(config).clips():
            to_utterance.map(clip)


def test_noise_of_media_shards(config, source, monkeypatch, media_folders):
    """The training clips themselves serve as recordings here."""
    settings = {"noise.probability": 1.0, "noise.kinds": (str(media_folders[1] / "media_clean"),)}
    audio = [np.tile(record["audio"], 3).tobytes() for record in source]
    parts = [added[:2000].tobytes() for _, added, _ in noise_in(config, source, monkeypatch, **settings)]
    found = {next(number for number, one in enumerate(audio) if part in one) for part in parts}
    assert len(found) > 10


def test_masks_hide_parts_of_what_is_heard_in_training_alone(config, source):
    plain = loader(config, NAMES)
    load = loader(config, NAMES, **{"mask.times": 2, "mask.ranges": 1}).load
    hidden = [load((1, source[0]), epoch)["audio"] == 0 for epoch in range(30)]
    assert any(one.all(1).any() for one in hidden), "whole frames"
    assert any(one.all(0).any() for one in hidden), "bands"
    whole = plain.load((1, source[0]), 0)["audio"]
    for epoch, one in enumerate(hidden):
        assert np.array_equal(load((1, source[0]), epoch)["audio"][~one], whole[~one])
    assert same(load((1, source[0])), plain.load((1, source[0]))), "validation sees and hears all"
    assert not load((2, source[0]), 0)["audio"].any()


def test_frames_that_are_not_seen_are_drawn_after_all_else(config, source):
    """So that the rest of a clip is as without them; as masks they are for training alone."""
    settings = {"noise.probability": 0.5, "drop_video": 0.2, "mask.times": 1}
    plain = loader(config, **settings)
    load = loader(config, **settings, **{"drop_frames.spans": 2, "drop_frames.frames": 4}).load
    lost_in_all = 0
    for epoch in range(40):
        one, whole = load((0, source[0]), epoch), plain.load((0, source[0]), epoch)
        lost_frames = whole["has_video"] & ~one.pop("has_video")
        assert same(one, {name: value for name, value in whole.items() if name != "has_video"})
        assert lost_frames.sum() <= 8 and whole["has_video"].all() == whole["has_video"].any()
        lost_in_all += lost_frames.sum()
    assert 0.8 * 40 * 3 < lost_in_all < 1.2 * 40 * 4  # two spans of 2 frames on average, some of them in one place
    assert same(load((0, source[0])), plain.load((0, source[0])))


@pytest.mark.parametrize("policy", ["", "held"])
def test_sets_with_a_share_of_the_video_lost(config, policy):
    """They are the clips of the set that their names tell, in evaluation and in training."""
    loaded = clips.ClipLoader(read_settings(config).data, ("av_clean", f"av_lost40{policy}"), "test")
    both = list(loaded.clips())
    whole, found = both[: len(both) // 2], both[len(both) // 2 :]
    for one, other in zip(whole, found, strict=True):
        share = lost.LostVideo(40, "held" if policy else "zeros")
        pictures, seen = share.lose(one["id"], one["video"])
        assert np.array_equal(other.pop("has_video"), seen) and np.array_equal(other.pop("video"), pictures)
        assert seen.all() == bool(policy) and one.pop("has_video").all()
        assert same(other, {name: value for name, value in one.items() if name != "video"})


def test_a_set_with_lost_video_of_media_that_are_not_there(config):
    with pytest.raises(InputError, match="media_street_0db: no such folder"):
        loader(config, ("av_street_0db_lost25",))
    with pytest.raises(InputError, match="media_lost25: no such folder"):
        loader(config, ("audio_lost25",))


def test_weighted_clips(config):
    config.data.train, config.data.weights = ("av_clean", "video_clean"), (1, 3)
    data = read_settings(config).data
    drawn = clips.ClipLoader(data, data.train, "train").augmented()
    heard = [drawn[index]["has_audio"] for index in range(120)]
    assert 0.15 < np.mean(heard) < 0.35


def test_clips_of_several_folders(config, source, tmp_path):
    """A name's folder is found beside that of media, also where it has a path in front."""
    (tmp_path / "media_clean").symlink_to(source.folder)
    config.data.train = ("av_clean", f"{tmp_path}/audio_clean")
    data = read_settings(config).data
    found = list(clips.ClipLoader(data, data.train, "train").clips())
    assert [clip["has_video"].all() for clip in found] == [True] * len(source) + [False] * len(source)
    assert pipeline.shard_folders(data) == [epath.Path(config.data.path) / "media_clean", tmp_path / "media_clean"]
