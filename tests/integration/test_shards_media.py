"""Shards that hold the clips themselves, and noise from recordings."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from small_shards import FRAMES, alone, contents, identity, options, prepare, read, refused
from small_wav import write_wav

from viavsp_jax.data import media, noise, records
from viavsp_jax.data.examples import MEDIA
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.features.reading import Noise, Talkers
from viavsp_jax.prepare.manifest_files import read_manifest

MODALITIES = ("av", "audio", "video")


def assert_media(prepared: Path, folder: Path, split: str, hear) -> None:
    """Every record holds its clip's file, the waveform that `hear(clip)` gives, and the counts of that."""
    found = read(folder, split)
    clips = read_manifest(prepared / "manifest", split)
    assert found.keys() == {clip.id for clip in clips}
    for clip, num_frames in zip(clips, FRAMES[split], strict=True):
        example, samples = found[clip.id], hear(clip)
        assert example["video"] == Path(clip.video).read_bytes()
        np.testing.assert_array_equal(example["audio"], samples)
        assert media.decode_video(example["video"], clip.id).shape == (num_frames, 96, 96)
        for modality in MODALITIES:
            _, counts = alone(prepared, clip, modality, samples)
            assert example[f"cluster_counts_{modality}"].tolist() == counts and sum(counts) == num_frames
        texts = (example["transcript"], example["source_language"], example["target_language"])
        assert texts == (clip.transcript, "vi", "vi")


def test_media_hold_the_clips_and_the_counts_of_all_modalities(prepared, tmp_path):
    main(options(prepared, tmp_path, "--kind", "media", "--num_shards", "2"))
    assert [path.name for path in tmp_path.iterdir()] == ["media_clean"], "--modalities is for features"
    for split in FRAMES:
        assert_media(prepared, tmp_path / "media_clean", split, lambda clip: media.read_audio(clip.audio))
        found = read(tmp_path / "media_clean", split)
        ids = [clip.id for clip in read_manifest(tmp_path / "media_clean", split)]
        for modality in MODALITIES:
            lines = (tmp_path / f"media_clean/{split}.cluster_counts_{modality}").read_text().splitlines()
            assert lines == [" ".join(map(str, found[id][f"cluster_counts_{modality}"])) for id in ids]
    assert records.complete_splits(tmp_path / "media_clean", MEDIA) == {"test": 2, "train": 2}


def test_both_kinds_in_one_pass_are_what_each_is_alone(prepared, tmp_path):
    main(options(prepared, tmp_path / "both", "--kind", "both", "--modalities", "audio", "av"))
    main(options(prepared, tmp_path / "one", "--kind", "media"))
    main(options(prepared, tmp_path / "one", "--modalities", "av", "audio"))
    assert contents(tmp_path / "both") == contents(tmp_path / "one")
    for split in FRAMES:
        clips = read(tmp_path / "both/media_clean", split)
        for modality in ("av", "audio"):
            for id, example in read(tmp_path / f"both/{modality}_clean", split).items():
                np.testing.assert_array_equal(clips[id][f"cluster_counts_{modality}"], example["cluster_counts"])


def test_only_the_kind_that_is_missing_is_done_again(prepared, tmp_path):
    more = ["--kind", "both", "--split", "train"]
    main(options(prepared, tmp_path, *more))
    before = contents(tmp_path)
    kept = Path(records.shard_path(tmp_path / "av_clean", "train", 0, 1))
    lost = Path(records.shard_path(tmp_path / "media_clean", "train", 0, 1, MEDIA))
    kept_identity = identity(kept)
    lost.unlink()
    main(options(prepared, tmp_path, *more))
    assert identity(kept) == kept_identity and contents(tmp_path) == before


def test_media_with_babble_hold_what_was_heard(prepared, tmp_path):
    more = ["--kind", "media", "--noise", "babble", "--snr", "0", "--seed", "3", "--split", "test"]
    main(options(prepared, tmp_path, *more, "--workers", "2"))
    assert [path.name for path in tmp_path.iterdir()] == ["media_babble_0db"]
    clips = read_manifest(prepared / "manifest", "test")
    added = Noise(Talkers(clips, len(clips)), 0.0, 3)
    assert_media(
        prepared, tmp_path / "media_babble_0db", "test", lambda clip: added.add(clip, media.read_audio(clip.audio))
    )


def test_noise_from_recordings(prepared, tmp_path, capsys):
    rng, street, out = np.random.default_rng(0), tmp_path / "street", tmp_path / "out"
    for name in ("cars.wav", "rain/long.wav"):
        write_wav(street / name, rng.normal(0, 900, 20_000))
    more = ["--kind", "both", "--noise", str(street), "--snr", "2.5", "--split", "test"]
    main(options(prepared, out, *more, "--workers", "1"))
    assert sorted(path.name for path in out.iterdir()) == ["av_street_2.5db", "media_street_2.5db"]
    recordings = noise.Recordings(street)

    def hear(clip):
        speech = media.read_audio(clip.audio)
        added = noise.draw_part(recordings, len(speech), noise.rng_for(clip.id, 0), street)
        return noise.mix(speech, added, 2.5)

    assert_media(prepared, out / "media_street_2.5db", "test", hear)
    for clip in read_manifest(prepared / "manifest", "test"):
        features, counts = alone(prepared, clip, "av", hear(clip))
        example = read(out / "av_street_2.5db", "test")[clip.id]
        np.testing.assert_allclose(example["features"], features, atol=2e-3)
        assert example["cluster_counts"].tolist() == counts

    before = contents(out)
    write_wav(street / "cars.wav", rng.normal(0, 900, 20_000))
    assert "were made with another noise" in refused(capsys, options(prepared, out, *more))
    write_wav(street / "cars.wav", rng.normal(0, 900, 20_000), rate=8000)
    assert "cars.wav: audio is 8000 Hz" in refused(capsys, options(prepared, out, *more))
    assert "/nowhere: no .wav file" in refused(capsys, options(prepared, out, "--noise", "/nowhere", "--snr", "0"))
    assert contents(out) == before


def test_noise_from_a_folder_named_in_another_form(prepared, tmp_path):
    """A copy made by macOS, of the noise or of the shards, is the same noise, in the same order, in the same folder."""
    rng, out, samples = np.random.default_rng(0), tmp_path / "out", {}
    for name in ("é", "ez"):  # in NFD é comes first, in NFC last
        samples[name] = rng.normal(0, 900, 9000)
    for form in ("NFC", "NFD"):
        folder = tmp_path / form / unicodedata.normalize(form, "tiếng ồn")
        for name, wave in samples.items():
            write_wav(folder / f"{unicodedata.normalize(form, name)}.wav", wave)
        more = ["--kind", "both", "--noise", str(folder), "--snr", "0", "--split", "test"]
        main(options(prepared, out, *more))
        names = ["av_tiếng ồn_0db", "media_tiếng ồn_0db"]
        assert sorted(path.name for path in out.iterdir()) == [unicodedata.normalize("NFC", name) for name in names]
    before = contents(out)
    for name in names:
        (out / unicodedata.normalize("NFC", name)).rename(out / unicodedata.normalize("NFD", name))
    main(options(prepared, out, *more))
    after = {unicodedata.normalize("NFC", name): content for name, content in contents(out).items()}
    assert after == before and len(list(out.iterdir())) == 2


def test_clips_that_cannot_be_read_are_skipped_in_both_kinds(tmp_path):
    folder = prepare(tmp_path)
    clips = read_manifest(folder / "manifest", "train")
    Path(clips[1].video).write_bytes(b"no video at all")
    main(options(folder, tmp_path / "out", "--kind", "both", "--split", "train"))
    for name in ("av_clean", "media_clean"):
        (line,) = (tmp_path / "out" / name / "skipped.jsonl").read_text().splitlines()
        assert json.loads(line)["id"] == clips[1].id and clips[1].video in json.loads(line)["reason"]
        assert len(read(tmp_path / "out" / name, "train")) == 6


@pytest.mark.parametrize("kind", ["both", "features"])
def test_noise_does_not_go_with_video_features(prepared, tmp_path, capsys, kind):
    more = ["--kind", kind, "--noise", "babble", "--snr", "0", "--modalities", "video"]
    assert "leave video out of --modalities" in refused(capsys, options(prepared, tmp_path, *more))
