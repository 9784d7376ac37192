"""Folders' names are names: neither patterns nor addresses.

etils' `glob` joins the folder and the pattern and looks for the whole: in a folder `run [2]` nothing is ever found.
Orbax looks so for the files of each process that make up a checkpoint, TFDS and JAX's cache for theirs, and none of
them can be told another way. They ask `epath.Path` itself, so its methods are the one place to mend. In a bucket its
`rmtree` and `unlink` take names for patterns too.
"""

import functools
import glob
import os
import urllib.parse
from collections.abc import Callable, Iterator

from etils import epath

from viavsp_jax.runtime.errors import InputError

_Path = type(epath.Path("."))  # of local folders, and of buckets' addresses
_joining, _removing = _Path.glob, {name: getattr(_Path, name) for name in ("rmtree", "unlink")}


@functools.wraps(_joining)
def _in_folder(self: epath.Path, pattern: str) -> Iterator[epath.Path]:
    if "://" in os.fspath(self):
        return _joining(_escaped(self), pattern)
    if "**" in pattern:
        return _joining(self, pattern)  # which it refuses
    return (self / name for name in glob.glob(pattern, root_dir=self))


def _escaped(path: epath.Path) -> epath.Path:
    return type(path)(glob.escape(os.fspath(path)))


def _by_name(remove: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(remove)
    def removed(self: epath.Path, *args: bool, **kwargs: bool) -> None:
        remove(_escaped(self) if "://" in os.fspath(self) else self, *args, **kwargs)

    return removed


def mend_globs() -> None:
    """Lets the paths of etils find what matches a pattern in a folder of any name, for the whole process; and remove
    from a bucket what has the name that is given, and nothing that it would match."""
    _Path.glob = _in_folder
    for name, remove in _removing.items():
        setattr(_Path, name, _by_name(remove))


def key_value_store(folder: epath.PathLike) -> str | dict[str, str]:
    """The files of a folder as tensorstore wants them named. Raises InputError where it would take another folder."""
    place = os.fspath(folder)
    if "\\" in place:
        raise InputError(f"{place}: a folder with a backslash in its name cannot hold arrays: give it another name")
    if "://" in place:
        scheme, rest = place.split("://", 1)
        return f"{scheme}://{urllib.parse.quote(rest)}/"
    return {"driver": "file", "path": f"{os.path.abspath(place)}/"}
