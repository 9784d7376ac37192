"""Files that appear whole or not at all."""

import os
import pathlib

import pytest

from viavsp_jax.runtime.atomic import atomic_write, check_writable, remove_leftovers, write_bytes
from viavsp_jax.runtime.errors import InputError


def test_what_fails_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "file"
    write_bytes(path, b"whole")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        pathlib.Path(temporary).write_bytes(b"ha")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    flushed, replace, fsync = [], os.replace, os.fsync

    def flush(handle):
        fsync(handle)
        flushed.append((os.fstat(handle).st_ino, os.fstat(handle).st_size))

    def rename(source, target):
        assert flushed == [(os.stat(source).st_ino, 5)]
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    write_bytes(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_others_may_read_it_as_they_may_read_what_is_not_atomic(tmp_path):
    write_bytes(tmp_path / "atomic", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["x" * 255, "ệ" * 85, "-a:b%d", "một hai"])
def test_a_name_may_be_as_long_as_names_can_be(tmp_path, name):
    check_writable(tmp_path / name)
    write_bytes(tmp_path / name, b"whole")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x" * 255, "ệ" * 85, "viavsp-train.array_record-00001-of-00004", "a [2]*"])
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, name):
    others = [name[:-1] + "1", "." + name[:-1] + "1.abc.tmp"] if len(name.encode()) < 200 else []
    for other in others:
        (tmp_path / other).touch()
    with atomic_write(tmp_path / name) as temporary:
        left = pathlib.Path(temporary).with_name(pathlib.Path(temporary).name[:-12] + "12345678.tmp")
        left.write_bytes(b"half")  # as one of another process is named
    assert left.exists()
    remove_leftovers(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == sorted([name, *others])


def test_what_cannot_be_written_is_said_and_nothing_is_made(tmp_path, small_disk):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for path, folder, message in (
        ("file", True, "a file is there, expected a folder or nothing yet"),
        ("file/new", False, r"cannot be written \(Not a directory\), expected a place for a file"),
        ("file/new/deep", True, r"cannot be written \(Not a directory\)"),
        ("link", True, "a file is there, expected a folder or nothing yet"),
        ("link/new", True, r"cannot be written \(No such file or directory\)"),
        (".", False, "a folder is there, expected a file or nothing yet"),
        ("x" * 256, False, r"cannot be written \(File name too long\)"),
        ("new/" + "x" * 256, True, r"cannot be written \(File name too long\)"),
    ):
        with pytest.raises(InputError, match=f"^--output {tmp_path / path}: {message}"):
            check_writable(tmp_path / path, "--output", folder)
    for path, folder in (("file", False), ("new/deep/file", False), ("new/deep", True), (".", True), ("link", False)):
        check_writable(tmp_path / path, folder=folder)
    assert sorted(tmp_path.rglob("*")) == before
    disk = small_disk(2**20)
    disk.read_only()
    with pytest.raises(InputError, match=r"new: cannot be written \(Read-only file system\)"):
        check_writable(disk.path / "new", folder=True)
