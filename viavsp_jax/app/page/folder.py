"""The folder in which the page keeps what visitors send and get.

It goes away with the process. Where a process was killed, the next one removes what it left.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

_PREFIX, _LOCK = "viavsp_page_", "lock"
_SMALLEST = 2**16  # bytes that each file counts at least, so that their number is limited too


@contextlib.contextmanager
def own_folder() -> Iterator[pathlib.Path]:
    """A new folder in the system's place for temporary files, removed at the end; abandoned ones are removed first."""
    parent = pathlib.Path(tempfile.gettempdir()).resolve()
    remove_abandoned(parent)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as name:
        folder = pathlib.Path(name)
        with (folder / f"{_LOCK}.new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A lock that can be found has been locked: nobody takes a folder that is being made for an abandoned one.
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
            yield folder


def remove_abandoned(parent: pathlib.Path) -> None:
    """Removes the folders of processes that are gone. The kernel unlocks what they had locked, however they ended."""
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        # In a folder for everybody, others may have made a link that looks like one of ours.
        with contextlib.suppress(OSError):
            owner = lock.parent.lstat()
            if owner.st_uid != os.getuid() or not stat.S_ISDIR(owner.st_mode):
                continue
            with open(os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


def size(folder: pathlib.Path) -> int:
    """Bytes of all files in a folder; small ones count 64 KiB."""
    return sum(max(_SMALLEST, status.st_size) for _, status in _entries(folder) if stat.S_ISREG(status.st_mode))


def delete_old(folder: pathlib.Path, seconds: float) -> None:
    """Deletes the files that were written longer ago, and folders in which nothing was for so long."""
    oldest = time.time() - seconds
    for path, status in sorted(_entries(folder), reverse=True):  # what is in a folder comes before it
        if status.st_mtime < oldest:
            with contextlib.suppress(OSError):  # gone already, or a folder that is not empty
                path.rmdir() if stat.S_ISDIR(status.st_mode) else path.unlink()


def _entries(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
    """All that is in a folder, at any depth, but for what goes away meanwhile."""
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = pathlib.Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat()
