"""Which files are transcribed, and where their outputs go."""

import os
from pathlib import Path

import pytest

from viavsp_jax.app.files import outputs, recordings_in
from viavsp_jax.runtime.errors import InputError


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_a_folder_stands_for_the_recordings_in_it(tmp_path):
    folder = touch(tmp_path / "a [2] b", "b.MP4", "clip 10.wav", "clip 2.mkv", "notes.txt", "b.subtitled.mp4", ".c.mp4")
    touch(folder, "d.ts", "e.opus", "b.srt", "b.mouths.png")
    (folder / "inner.mp4").mkdir()
    names = ["b.MP4", "clip 2.mkv", "clip 10.wav", "d.ts", "e.opus"]
    assert recordings_in([str(folder)]) == [folder / name for name in names]
    other = folder / "notes.txt"  # what is given by its name is tried, and nothing twice
    assert recordings_in([str(other), str(folder / "d.ts"), str(folder)])[:3] == [
        other,
        folder / "d.ts",
        folder / "b.MP4",
    ]
    assert len(recordings_in([str(folder), str(folder)])) == 5


def test_what_is_no_recording(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    for path, words in (
        (tmp_path / "pipe.mp4", "is no regular file"), (Path("/dev/zero"), "is no regular file"),
        (tmp_path / "loop.mp4", "no such file"), (tmp_path / "gone.mp4", "no such file"),
        (tmp_path, "no recording in this folder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{path}: {words}, expected"):
            recordings_in([str(path)])


def test_names_of_outputs(tmp_path):
    a, b, c = (tmp_path / name for name in ("talk.mp4", "talk.wav", "x.tar.mkv"))
    found = outputs([a, b, c], None, ["srt", "json"], True, True)
    assert found[c] == {
        "srt": tmp_path / "x.tar.srt", "json": tmp_path / "x.tar.json", "video": tmp_path / "x.tar.subtitled.mp4",
        "sheet": tmp_path / "x.tar.mouths.png",
    }  # fmt: skip
    assert [found[file]["srt"].name for file in (a, b)] == ["talk.mp4.srt", "talk.wav.srt"]
    assert outputs([a], str(tmp_path / "out"), ["txt"], False, False) == {a: {"txt": tmp_path / "out" / "talk.txt"}}


def test_outputs_that_cannot_be(tmp_path):
    a, b = touch(tmp_path / "one", "a.mp4") / "a.mp4", touch(tmp_path / "two", "a.mp4") / "a.mp4"
    for files, folder, words in (
        ([a, b], str(tmp_path), "2 of the files would be written to .*a.mp4.srt"),
        ([a], str(a), "--output .*a.mp4: a file is there, expected a folder"),
        ([tmp_path / ("x" * 252 + ".mp4")], None, "File name too long"),
        ([tmp_path / "b.srt"], None, "b.srt would be overwritten, which is one of the files"),
    ):
        with pytest.raises(InputError, match=words):
            outputs(files, folder, ["srt"], False, False)
