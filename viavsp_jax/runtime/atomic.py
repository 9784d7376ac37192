"""Files that appear whole or not at all, so that a process may be killed, or its machine lose power, at any moment."""

import contextlib
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator

from etils import epath

from viavsp_jax.runtime.buckets import bucket_trouble
from viavsp_jax.runtime.errors import RIGHTS, InputError


@contextlib.contextmanager
def atomic_write(path: epath.PathLike) -> Iterator[str]:
    """Yields a local file name; its content appears as `path`, whole, when nothing failed."""
    path = epath.Path(path)
    if "://" in os.fspath(path):  # a bucket: there an object appears only when its upload is complete
        with tempfile.TemporaryDirectory() as scratch:
            local = epath.Path(scratch) / path.name
            yield os.fspath(local)
            local.copy(path, overwrite=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=_temporary_prefix(path), suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only their owner reads
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else the name could be on the disk before the content
        os.replace(temporary, path)
    except BaseException:
        epath.Path(temporary).unlink(missing_ok=True)
        raise


def remove_leftovers(path: epath.PathLike) -> None:
    """Removes what killed processes left of a file; nobody else may be writing it."""
    path = epath.Path(path)
    if "://" in os.fspath(path) or not path.parent.exists():
        return
    names = re.compile(re.escape(_temporary_prefix(path)) + r"\w+\.tmp")
    for file in path.parent.iterdir():
        if names.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _temporary_prefix(path: epath.Path) -> str:
    """How the temporary names of a file begin: by its name, or a hash of one that leaves no bytes to add to."""
    name = os.fsencode(path.name)
    return f".{path.name}." if len(name) <= 240 else f".{hashlib.sha256(name).hexdigest()}."


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a small file, at once or not at all."""
    with atomic_write(path) as temporary:
        epath.Path(temporary).write_bytes(content)


def check_writable(path: epath.PathLike, option: str = "", folder: bool = False) -> None:
    """Raises InputError, before any work, if a file (or a folder) cannot be made or replaced; nothing is changed.

    `option` is what the user gave it by, e.g. --output. In a bucket an empty object is made, read and removed again.
    """
    name, what = f"{option} {os.fspath(path)}".strip(), "a folder" if folder else "a file"
    if "://" in os.fspath(path):
        return _check_bucket(epath.Path(path) if folder else epath.Path(path).parent, name)
    place = os.path.abspath(path)
    try:
        if _exists(place) and os.path.isdir(place) != folder:
            there = "a file" if folder else "a folder"
            raise InputError(f"{name}: {there} is there, expected {what} or nothing yet")
        place = place if folder else os.path.dirname(place)
        missing = [os.path.basename(path)]
        while not _exists(place):
            place, name_of_it = os.path.split(place)
            missing.append(name_of_it)
        for one in missing:  # below a folder that is not there yet, no name is too long
            _exists(os.path.join(place, one))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"{name}: cannot be written ({error.strerror}), expected a place for {what}") from None


def _check_bucket(folder: epath.Path, name: str) -> None:
    if {"#", "?"} & {*os.fspath(folder)}:  # of a generation, and of a query
        raise InputError(f"{name}: holds a # or a ?, which end a name in a bucket's address, expected one without them")
    probe = folder / f".viavsp-{uuid.uuid4()}"
    try:
        probe.write_bytes(b"")
        probe.read_bytes()
        probe.unlink()
    except Exception as error:
        if (trouble := bucket_trouble(error)) is None:
            raise
        raise InputError(f"{name}: cannot be written ({trouble}), {RIGHTS}") from error


def _exists(path: str) -> bool:
    """Whether anything is there, if only a link to nothing; OSError for a name that is too long or below a file."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return os.path.islink(path)
    return True


def check_utf_8(path: epath.PathLike, option: str = "") -> None:
    """Raises InputError if a folder's path has bytes that are not UTF-8: what reads and writes weights, clips and
    shards takes no such names, and some of it waits forever."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        name = f"{option} {os.fspath(path)!a}".strip()
        raise InputError(f"{name}: holds bytes that are not UTF-8, expected a path of UTF-8") from None
