"""Files that appear whole or not at all."""

import os
import pathlib

import pytest

from viavsp_jax.data.atomic import atomic_write, write_bytes


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
