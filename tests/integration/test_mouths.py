"""The mouths stage on a folder with a good recording, one without a face and a broken one, and what comes after it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
import unicodedata

import deadly_clips
import numpy as np
import pandas as pd
import pytest
from open_corpus import write_archive
from real_videos import CARTOON, PHONE, SPEECH, first, write_video, write_wav

from viavsp_jax.data import media
from viavsp_jax.prepare import mouths
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.recordings import mouth_clips
from viavsp_jax.prepare.recordings.mouth import STABLE_POINTS, _stable_face, mouth_crops
from viavsp_jax.prepare.recordings.mouth_video import write_video as write_crops
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.prepare.skipped import read_skipped

FRAMES = 30
NOISE = np.random.default_rng(0).integers(-3000, 3000, 32_000).astype(np.int16)


def options(videos, output, *more) -> list[str]:
    return ["mouths", "--videos", str(videos), "--output", str(output), "--workers", "0", *map(str, more)]


def refused(capsys, *arguments) -> str:
    """The message of a run that ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        main(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def skipped(output) -> dict[str, str]:
    return {line["id"]: line["reason"] for line in read_skipped(output)}


def files(output) -> dict[str, int]:
    """All files of a corpus but the tables, and when each was written."""
    found = (path for folder in ("visual", "audio", "notes") for path in (output / folder).rglob("*.*"))
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in found}


def write_table(path, rows):
    """A table of transcripts."""
    pd.DataFrame(rows, columns=["id", "transcript", "split"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The folder."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "news").mkdir()
    samples = read_recording(SPEECH).samples[: FRAMES * 640]
    write_video(folder / "news" / "speech.MP4", first(SPEECH, FRAMES), samples=samples)
    (folder / "broken.mp4").write_bytes(SPEECH.read_bytes()[:20_000])
    write_video(folder / "cartoon.mkv", first(CARTOON, 6), samples=NOISE)
    write_video(folder / "silent.mkv", first(PHONE, 6))
    write_video(folder / "speech.mp4", [np.zeros((96, 96, 3), np.uint8)] * 5, codec="mpeg4")
    write_crops(str(folder / "mouth.mp4"), np.zeros((5, 96, 96), np.uint8))
    (folder / "news" / "mouth.mkv").write_bytes(b"")
    (folder / "news_mouth.mkv").write_bytes(b"")  # the same id
    (folder / "notes.txt").write_text("no recording")
    write_wav(folder / "song.wav", NOISE)
    return folder


@pytest.fixture(scope="module")
def corpus(videos, tmp_path_factory):
    """The corpus made of it, with transcripts."""
    folder = tmp_path_factory.mktemp("mouths")
    rows = [("news_speech", "xin chào các bạn", "train"), ("broken", "a", "train"), ("nobody", "b", "test")]
    main(options(videos, folder / "corpus", "--transcripts", write_table(folder / "table.csv", rows)))
    return folder / "corpus"


def test_the_good_recording_becomes_a_clip(corpus, videos):
    recording = read_recording(videos / "news" / "speech.MP4")
    (clip,) = pd.read_parquet(corpus / "mouths.parquet").to_dict("records")
    assert clip == {
        "id": "news_speech",
        "shard": clip["shard"],
        "source": f"{videos}/news/speech.MP4",
        "frames": FRAMES,
        "samples": FRAMES * 640,
        "found": 1.0,
    }
    audio = media.read_audio(corpus / "audio" / clip["shard"] / "news_speech.wav")
    np.testing.assert_array_equal(audio, recording.samples)
    got, crops = media.read_video(corpus / "visual" / clip["shard"] / "news_speech.mp4"), mouth_crops(recording).crops
    assert got.shape == crops.shape
    assert 10 * np.log10(255**2 / np.square(got.astype(float) - crops).mean()) > 50  # dB


def test_bad_recordings_are_skipped_and_listed(corpus, videos):
    reasons = skipped(corpus)
    assert list(reasons) == ["broken", "cartoon", "mouth", "news_mouth", "silent", "speech"]
    assert "broken.mp4: not a media file" in reasons["broken"]
    assert "cartoon.mkv: no face" in reasons["cartoon"] or "cartoon.mkv: a face" in reasons["cartoon"]
    for id in ("mouth", "silent", "speech"):
        assert "has no sound" in reasons[id]
    lines = read_skipped(corpus)
    assert len(lines) == 7 and sum("news_mouth.mkv: has the same id as" in line["reason"] for line in lines) == 1
    assert [path for path in files(corpus) if not path.startswith("notes")] == [
        f"{kind}/{shard}/news_speech.{suffix}"
        for kind, suffix in (("visual", "mp4"), ("audio", "wav"))
        for shard in os.listdir(corpus / kind)
    ]


def test_the_manifest_stage_goes_on_with_it(corpus, tmp_path):
    main(["manifest", "--data", str(corpus), "--output", str(tmp_path)])
    (clip,) = read_manifest(tmp_path, "train")
    assert (clip.id, clip.transcript, clip.num_frames) == ("news_speech", "xin chào các bạn", FRAMES)
    assert clip.num_samples == len(media.read_audio(clip.audio)) and len(media.read_video(clip.video)) == FRAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.tsv", "train.wrd"]


def test_a_corpus_of_whole_faces_in_archives(corpus, videos, tmp_path, capsys):
    """Its transcripts and splits come along; a test set under a condition repeats the ids of the plain one."""
    face = {"video": (videos / "news" / "speech.MP4").read_bytes(), "label": "xin chào các bạn".encode()}
    for name in ("train", "test", "test_snr_0_interferer_1"):
        samples = {f"{'a' if name == 'train' else 'b'}": face, "c": {"video": b"", "label": b"x"}}
        write_archive(tmp_path / f"tars/x-{name}-000000.tar", samples)
    assert "no mouth crops" not in refused(capsys, options(videos, tmp_path / "out", "--data", tmp_path / "tars"))
    line = ["mouths", "--data", str(tmp_path / "tars"), "--output", str(tmp_path / "out"), "--workers", "0"]
    main(line)
    before = files(tmp_path / "out")
    main(line)
    assert files(tmp_path / "out") == before and len(skipped(tmp_path / "out")) == 1
    main(["manifest", "--data", str(tmp_path / "out"), "--output", str(tmp_path / "manifest")])
    (expected,) = (corpus / "visual").rglob("*.mp4")
    for split, id in (("train", "a"), ("test", "b"), ("test_snr_0_interferer_1", "b")):
        (clip,) = read_manifest(tmp_path / "manifest", split)
        assert (clip.id, clip.transcript) == (id, "xin chào các bạn")
        np.testing.assert_array_equal(media.read_video(clip.video), media.read_video(expected))


def test_a_second_run_makes_only_what_is_missing(corpus, videos, tmp_path, caplog):
    shutil.copytree(videos, tmp_path / "videos")
    shutil.copytree(corpus, tmp_path / "corpus")
    for note in (tmp_path / "corpus" / "notes").rglob("*.json"):  # as if they had been made from the copies
        content = json.loads(note.read_text())
        content["path"] = content["path"].replace(str(videos), str(tmp_path / "videos"))
        note.write_text(json.dumps(content))
    again = options(tmp_path / "videos", tmp_path / "corpus")
    before = files(tmp_path / "corpus")
    main(again)
    assert files(tmp_path / "corpus") == before
    # A clip that is gone, and a recording that is another one now.
    next((tmp_path / "corpus" / "audio").rglob("*.wav")).unlink()
    shutil.copy(tmp_path / "videos" / "mouth.mp4", tmp_path / "videos" / "broken.mp4")
    main(again)
    after = files(tmp_path / "corpus")
    assert after.keys() == before.keys()
    changed = {path.split("/")[-1] for path in before if before[path] != after[path]}
    assert changed == {"news_speech.mp4", "news_speech.wav", "news_speech.json", "broken.json"}
    assert "has no sound" in skipped(tmp_path / "corpus")["broken"]
    assert len(pd.read_parquet(tmp_path / "corpus" / "mouths.parquet")) == 1


def test_another_mean_face_makes_other_clips(tmp_path):
    (tmp_path / "videos").mkdir()
    path = write_video(tmp_path / "videos" / "a.mkv", first(SPEECH, 6), samples=NOISE[: 6 * 640])
    face = np.full((68, 2), 128.0)
    face[STABLE_POINTS] = 1.3 * (_stable_face() - 128) + 128
    np.save(tmp_path / "face.npy", face)
    crops = []
    for more in ([], ["--mean_face", tmp_path / "face.npy"]):
        main(options(tmp_path / "videos", tmp_path / "corpus", *more))
        crops.append(media.read_video(next((tmp_path / "corpus" / "visual").rglob("*.mp4"))).astype(float))
    assert np.abs(crops[1] - mouth_crops(read_recording(path), face).crops).mean() < 2
    assert np.abs(crops[1] - crops[0]).mean() > 4


def test_sound_alone_can_be_kept(videos, tmp_path, caplog):
    """Also in worker processes, and with a clip that is longer than those that training takes."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("cartoon.mkv", "broken.mp4", "song.wav"):
        shutil.copy(videos / name, folder)
    write_wav(folder / "long.wav", np.tile(NOISE, 11))
    output = folder / "corpus"  # what is written there is not read the next time
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("INFO"):
            main([*options(folder, output, "--audio_only_without_face"), "--workers", "1"])
        assert "3 clips, 1 skipped" in caplog.text and "1 clips have more than 500 frames (20 s)" in caplog.text
    clips = pd.read_parquet(output / "mouths.parquet").set_index("id")
    assert clips["frames"].to_dict() == {"cartoon": 50, "long": 550, "song": 50} and not clips["found"].any()
    assert list(skipped(output)) == ["broken"]
    video = media.read_video(output / "visual" / clips["shard"]["song"] / "song.mp4")
    assert video.shape == (50, 96, 96) and not video.any()
    np.testing.assert_array_equal(media.read_audio(output / "audio" / clips["shard"]["song"] / "song.wav"), NOISE)


def test_recordings_of_which_workers_die_are_skipped(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    crops = np.random.default_rng(1).integers(0, 255, (4, 9, 96, 96)).astype(np.uint8)
    for number in range(4):
        write_video(
            tmp_path / "videos" / f"{number}.mkv", crops[number][..., None].repeat(3, -1), samples=NOISE[: 9 * 640]
        )
    main(options(tmp_path / "videos", tmp_path / "clean"))
    monkeypatch.setattr(mouth_clips, "ClipMaker", deadly_clips.BadClipMaker)
    monkeypatch.setattr(mouths, "_PATIENCE", 4)  # a process that starts takes some of it
    main([*options(tmp_path / "videos", tmp_path / "corpus"), "--workers", "2"])
    reasons = skipped(tmp_path / "corpus")
    assert reasons.keys() == {deadly_clips.ABORTS, deadly_clips.HANGS}
    for id, death in ((deadly_clips.ABORTS, "Aborted"), (deadly_clips.HANGS, "more than 4 s")):
        assert f"{id}.mkv: the process that read this recording died twice ({death})" in reasons[id]
    assert pd.read_parquet(tmp_path / "corpus" / "mouths.parquet")["id"].tolist() == ["0", "2"]
    kept = [path for path in files(tmp_path / "clean") if path.split("/")[-1].partition(".")[0] in "02"]
    assert len(kept) == 6 and sorted(kept) == sorted(files(tmp_path / "corpus"))
    for path in kept:
        assert (tmp_path / "corpus" / path).read_bytes() == (tmp_path / "clean" / path).read_bytes()


def test_every_second_of_a_recording_is_a_sign_of_life(tmp_path, monkeypatch):
    signs = []
    monkeypatch.setattr(mouth_clips, "sign_of_life", lambda: signs.append("of life"))
    (tmp_path / "videos").mkdir()
    crops = np.random.default_rng(1).integers(0, 255, (100, 96, 96, 1)).astype(np.uint8).repeat(3, -1)
    write_video(tmp_path / "videos" / "a.mkv", crops, samples=NOISE)
    main(options(tmp_path / "videos", tmp_path / "corpus"))
    assert len(signs) == 4 + 1
    without_length = dataclasses.replace(read_recording(tmp_path / "videos" / "a.mkv"), seconds=None)
    signs.clear()
    mouth_crops(without_length, progress=signs.append)
    assert signs == [0.0] * 4 + [1.0]


def test_on_a_ray_cluster(surroundings, videos, tmp_path):
    (tmp_path / "videos").mkdir()
    crops = np.random.default_rng(1).integers(0, 255, (2, 9, 96, 96)).astype(np.uint8)
    for number in range(2):
        frames = crops[number][..., None].repeat(3, -1)
        write_video(tmp_path / "videos" / f"{number}.mkv", frames, samples=NOISE[: 9 * 640])
    shutil.copy(videos / "broken.mp4", tmp_path / "videos")
    more = [tmp_path / "videos", tmp_path / "there", "--runner", "ray"]
    main([*options(*more), "--workers", "1"])
    assert pd.read_parquet(tmp_path / "there" / "mouths.parquet")["frames"].tolist() == [9, 9]
    assert list(skipped(tmp_path / "there")) == ["broken"]
    main(options(tmp_path / "videos", tmp_path / "here"))
    for path in files(tmp_path / "here"):
        assert (tmp_path / "here" / path).read_bytes() == (tmp_path / "there" / path).read_bytes()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_transcripts_find_their_recordings_in_every_spelling(tmp_path, form, caplog):
    """Names as macOS writes them, a table as Excel does: NFC or NFD, spaces, semicolons, capitals in its name."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    folder = tmp_path / "videos" / unicodedata.normalize(form, "buổi  tối")
    folder.mkdir(parents=True)
    write_video(
        folder / f"{unicodedata.normalize(form, 'số một')}.mkv",
        np.zeros((3, 96, 96, 3), np.uint8),
        samples=NOISE[: 3 * 640],
    )
    shutil.copytree(folder, tmp_path / "videos" / unicodedata.normalize(other, "buổi  tối"))
    table = f"{unicodedata.normalize(other, 'buổi  tối_số một')};xin chào, các bạn;train\r\n;không có tên;train\r\n"
    (tmp_path / "T.CSV").write_bytes(f"id;transcript;split\r\n{table}".encode("utf-8-sig"))
    main(options(tmp_path / "videos", tmp_path / "corpus", "--transcripts", tmp_path / "T.CSV"))
    (row,) = pd.read_parquet(tmp_path / "corpus" / "metadata.parquet").to_dict("records")
    assert (row["id"], row["transcript"]) == ("buổi tối_số một", "xin chào, các bạn")
    assert "T.CSV: 1 rows have no id" in caplog.text
    (line,) = read_skipped(tmp_path / "corpus")
    assert "has the same id as" in line["reason"]
    assert next((tmp_path / "corpus" / "visual").rglob("*.mp4")).stem == "buổi tối_số một"


@pytest.mark.parametrize("ids", [[7, None, 8], [7.0, None, 8.0], ["7", None, "8"]])
@pytest.mark.parametrize("name", ["table.parquet", "table.PARQUET", "table"])
def test_a_gap_among_whole_numbers_leaves_the_others(tmp_path, ids, name):
    table = pd.DataFrame({"id": pd.array(ids, "Int64" if ids[0] == 7 else None), "transcript": "a", "split": "train"})
    table.to_parquet(tmp_path / name)
    table.to_csv(tmp_path / "table.csv", index=False)
    for path in (tmp_path / name, tmp_path / "table.csv"):
        found = mouths._read_transcripts(str(path))
        assert found.to_dict("list") == {"id": ["7", "", "8"], "transcript": ["a"] * 3, "split": ["train"] * 3}


def test_mistakes_are_told_in_a_sentence(capsys, videos, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no such folder" in refused(capsys, options(tmp_path / "nowhere", tmp_path / "out"))
    assert "holds no recording" in refused(capsys, options(tmp_path / "empty", tmp_path / "out"))
    assert "--ray_address goes with" in refused(capsys, options(videos, tmp_path / "out", "--ray_address", "auto"))
    assert "at least 1" in refused(capsys, options(videos, tmp_path / "out", "--runner", "ray"))
    assert "at least 0" in refused(capsys, options(videos, tmp_path / "out", "--workers", "-1"))
    face = options(videos, tmp_path / "out", "--mean_face", tmp_path / "face.npy")
    assert "face.npy: not a readable .npy file" in refused(capsys, face)
    (tmp_path / "bad").mkdir()
    shutil.copy(videos / "broken.mp4", tmp_path / "bad")
    assert "none of the 1 recordings gave a clip" in refused(capsys, options(tmp_path / "bad", tmp_path / "out"))
    shutil.copy(videos / "mouth.mp4", tmp_path / "bad")
    write_video(tmp_path / "bad" / "good.mkv", np.zeros((3, 96, 96, 3), np.uint8), samples=NOISE[: 3 * 640])
    write_table(tmp_path / "table.csv", [("a", "b", "train")])
    table = options(tmp_path / "bad", tmp_path / "out", "--transcripts", tmp_path / "table.csv")
    assert "no clip has a transcript, expected ids like 'good'" in refused(capsys, table)


def test_the_help_names_the_licence(capsys):
    with pytest.raises(SystemExit):
        main(["mouths", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "iBUG 300-W" in text and "bars commercial use" in text
    assert "--audio_only_without_face" in text and "--mean_face" in text


def test_without_its_packages_it_says_what_to_install(tmp_path):
    script = """
        import sys
        from importlib.machinery import PathFinder

        class CoreFinder(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name.split(".")[0] == "dlib" else super().find_spec(name, path, target)

        sys.meta_path = [CoreFinder if finder is PathFinder else finder for finder in sys.meta_path]
        from viavsp_jax.prepare.__main__ import main

        main(["mouths", "--videos", "videos", "--output", "corpus"])
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert result.returncode == 2
    assert "error: dlib: not installed, expected pip install dlib-bin" in result.stderr
