"""Files that appear whole or not at all, so that a process may be killed, or its machine lose power, at any moment."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from etils import epath


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
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
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


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes a small file, at once or not at all."""
    with atomic_write(path) as temporary:
        epath.Path(temporary).write_bytes(content)
