"""Bad media, each kind in one clip of a corpus, at the stages that read them: the others come out as without it."""

import os
import wave
from pathlib import Path

import deadly_work
import numpy as np
import pytest
import real_videos
from bad_input import SKIPPED, Bad, each, refused
from small_corpus import write_corpus, write_encoder, write_video
from small_shards import options

from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.features import reading
from viavsp_jax.prepare.kmeans import load_centers
from viavsp_jax.prepare.lines import read_lines, write_lines
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.skipped import read_skipped

ENTRY, MOUTHS = "prepare kmeans, shards", "prepare mouths"
LENGTH = 30  # frames of each clip
RNG = np.random.default_rng(0)


def video(wrong, words, make):
    return Bad(ENTRY, wrong, SKIPPED, words, lambda clip: make(Path(clip.video)))


def audio(wrong, words, make):
    return Bad(ENTRY, wrong, SKIPPED, words, lambda clip: make(Path(clip.audio)))


def content(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def without_pictures(data: bytes) -> bytes:
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    return data[:start] + bytes(end - start) + data[end:]


def damaged(data: bytes) -> bytes:
    middle = (data.index(b"mdat") + data.index(b"moov")) // 2
    return data[:middle] + bytes(200) + data[middle + 200 :]


def of_no_codec(data: bytes) -> bytes:
    return data.replace(b"mp4v", b"zzz2").replace(b"esds", b"free")


def in_its_place(make):
    """Something of another kind under the file's name."""

    def damage(path):
        path.unlink()
        make(path)

    return damage


def small_video(path):
    pictures = np.zeros((LENGTH, 64, 96, 3), np.uint8)
    real_videos.write_video(path, pictures, codec="mpeg4")


def wav(samples=LENGTH * 640, rate=16_000, channels=1, width=2):
    def make(path):
        with wave.open(str(path), "wb") as file:
            file.setparams((channels, width, rate, 0, "NONE", ""))
            file.writeframes(bytes(samples * channels * width))

    return make


def deadly(clip):
    """The file is good: deadly_work.py kills the process."""


CLIPS = [
    video("video is an empty file", "not a readable video file", content(lambda data: b"")),
    video("video is text", "not a readable video file", content(lambda data: b"<html>404</html>")),
    video("video is cut off", "not a readable video file", content(lambda data: data[: len(data) // 2])),
    video("audio file in place of the video", "not a readable video file", wav()),
    video("video with erased frame data", "no video frame could be decoded", content(without_pictures)),
    video("video is damaged in the middle", "damaged, ", content(damaged)),
    video("unsupported video codec", "has no decoder for here", content(of_no_codec)),
    video("video without frames", "mp4: ", lambda path: write_video(path, 0, RNG)),
    video("video of 96x64", "video is 96x64, expected a 96x96 mouth crop", small_video),
    video("video is longer than listed", "has 40 frames, expected 30", lambda path: write_video(path, 40, RNG)),
    video("video is shorter than listed", "has 20 frames, expected 30", lambda path: write_video(path, 20, RNG)),
    video("video of more than 500 frames", "has 501 frames", lambda path: write_video(path, 501, RNG)),
    video("directory in place of the video", "no such file, expected a mouth video", in_its_place(Path.mkdir)),
    video("pipe in place of the video", "no such file, expected a mouth video", in_its_place(os.mkfifo)),
    video(
        "video is a dangling link",
        "no such file, expected a mouth video",
        in_its_place(lambda path: path.symlink_to("nowhere")),
    ),
    audio("audio is missing", "no such file, expected a wav file", Path.unlink),
    audio("directory in place of the audio", "no such file, expected a wav file", in_its_place(Path.mkdir)),
    audio("audio is an empty file", "not a media file that can be read", content(lambda data: b"")),
    audio("audio is text", "not a media file that can be read", content(lambda data: b"<html>404</html>")),
    audio("audio is cut off", "truncated wav file", content(lambda data: data[:-100])),
    audio(
        "audio of no known coding",
        "kinds that there is no decoder for",
        content(lambda data: data[:20] + b"\3\7" + data[22:]),
    ),
    audio("audio without samples", "the wav file has no samples", wav(samples=0)),
    audio("audio is much longer than the video", "lasts 60.00 s, expected 1.20 s", wav(samples=960_000)),
    audio("audio is much shorter than the video", "lasts 0.01 s, expected 1.20 s", wav(samples=160)),
    Bad(ENTRY, "reader process crashes", SKIPPED, "the process that read this clip died twice", deadly),
]


def stage(name, folder, manifest, output, *more):
    """Runs kmeans or shards with one clip in a batch: so no clip depends on what else is in a batch."""
    line = options(folder, output, "--batch_size", "1", *more, manifest=folder / manifest)
    if name == "kmeans":
        at = line.index("--kmeans")
        line = ["kmeans", *line[1:at], *line[at + 2 :], "--layer", "2", "--num_clusters", "4"]
    main(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What kmeans and shards make of three good clips alone (good), and among one of each bad kind (mixed)."""
    folder = tmp_path_factory.mktemp("bad_media")
    write_corpus(folder / "corpus", {"train": [LENGTH] * (len(CLIPS) + 3)})
    main(["manifest", "--data", str(folder / "corpus"), "--output", str(folder / "mixed")])
    write_encoder(folder / "encoder")
    clips = read_manifest(folder / "mixed", "train")
    good = [0, 9, len(clips) - 1]
    for name, first in (("tsv", 1), ("wrd", 0)):  # the first line of a .tsv is the corpus' folder
        lines = read_lines(folder / f"mixed/train.{name}")
        write_lines(folder / f"good/train.{name}", [*lines[:first], *(lines[first + number] for number in good)])
    bad = [clip for number, clip in enumerate(clips) if number not in good]
    for case, clip in zip(CLIPS, bad, strict=True):
        case.make(clip)
    ids = [clip.id for clip in bad]
    stage("kmeans", folder, "good", folder / "kmeans")
    stage("shards", folder, "good", folder / "good_shards", "--kind", "both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_read_batch", deadly_work.read_batch)
        patch.setenv(deadly_work.DEADLY, ids[-1])
        stage("kmeans", folder, "mixed", folder / "mixed_kmeans", "--workers", "1")
        stage("shards", folder, "mixed", folder / "mixed_shards", "--kind", "both", "--workers", "1")
    return folder, ids


@each(CLIPS, SKIPPED)
def test_a_bad_clip_is_skipped_and_listed(folder, case):
    folder, ids = folder
    for name in ("av_clean", "media_clean"):
        (line,) = [
            line for line in read_skipped(folder / "mixed_shards" / name) if line["id"] == ids[CLIPS.index(case)]
        ]
        assert line["split"] == "train" and case.words in line["reason"] and str(folder / "corpus") in line["reason"]


def test_good_clips_are_stored_as_without_the_bad(folder):
    folder, ids = folder
    centers = [load_centers(str(folder / name))[0] for name in ("kmeans", "mixed_kmeans")]
    assert centers[0].tobytes() == centers[1].tobytes()
    for name in ("av_clean", "media_clean"):
        good, mixed = folder / "good_shards" / name, folder / "mixed_shards" / name
        names = {path.name for path in good.iterdir() if path.is_file()} - {"provenance.json"}
        assert len(names) >= 6 and not (good / "skipped.jsonl").exists() and len(read_skipped(mixed)) == len(ids)
        for file in names:
            assert (mixed / file).read_bytes() == (good / file).read_bytes(), file


def test_kmeans_tells_what_it_skips(folder, caplog):
    folder, ids = folder
    with caplog.at_level("INFO"):  # the crash apart, which would be that of this process
        stage("kmeans", folder, "mixed", folder / "again")
    assert f"4 clips, {len(ids) - 1} skipped" in caplog.text
    for case, id in zip(CLIPS[:-1], ids, strict=False):
        (said,) = [line for line in caplog.text.splitlines() if f"skipped {id}: " in line]
        assert case.words in said


def test_where_no_clip_can_be_read_nothing_is_written(folder, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    for name, first in (("tsv", 1), ("wrd", 0)):
        lines = read_lines(folder[0] / f"mixed/train.{name}")
        write_lines(tmp_path / f"bad/train.{name}", [*lines[:first], lines[first + 1], lines[first + 2]])
    for name in ("kmeans", "shards"):
        run = lambda: stage(name, folder[0], tmp_path / "bad", tmp_path / name / "out")  # noqa: B023, E731
        assert "none of" in (said := refused(run, capsys)) and "2 clips could be read, the first: " in said
    assert not list(tmp_path.rglob("*array_record*")) and not (tmp_path / "kmeans" / "out").exists()
