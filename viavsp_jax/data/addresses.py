"""Where the bytes of a medium lie: in a file of their own, or inside of another file.

    visual/0001/a.mp4                       a file
    data/train-000000.tar#a.video@1536+842  a member of a tar archive: its name, where its bytes begin and how many
    data/train.parquet#video.bytes@17       a value in a table of Parquet or Arrow: its column and its row, from 0

An address is one line of text, as paths in a manifest are, and is read without looking through the whole archive.
"""

import dataclasses
import io
import os
import re
import tarfile
from typing import BinaryIO

from etils import epath

from viavsp_jax.data import cells
from viavsp_jax.runtime.errors import InputError

_MEMBER = re.compile(r"(.+?\.tar)#(.+)@(\d{1,15})\+(\d{1,12})", re.DOTALL)
_NAME_IN_HEADER = 60  # bytes that all forms of tar have of it
_CELL = re.compile(r"(.+?\.(?:parquet|arrow))#([^#]+)@(\d{1,12})", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class _Member:
    path: str
    name: str
    offset: int
    size: int

    def read(self, where: str) -> bytes:
        with epath.Path(self.path).open("rb") as file:
            file.seek(self.offset - tarfile.BLOCKSIZE)
            header, content = file.read(tarfile.BLOCKSIZE), file.read(self.size)
        if len(content) < self.size:
            raise InputError(
                f"{where}: the archive ends after {len(content)} of {self.size} bytes, expected a whole one."
            )
        if not self._is_header(header):
            raise InputError(f"{where}: the archive has changed since the manifest was made, expected a new manifest.")
        return content

    def _is_header(self, block: bytes) -> bool:
        """Whether it stands in front of this member; long names are cut off there, and only ASCII is written in all."""
        try:
            found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return False
        same = self.name.startswith(found.name[:_NAME_IN_HEADER]) or not self.name.isascii()
        return found.size == self.size and same


@dataclasses.dataclass(frozen=True)
class _Cell:
    path: str
    column: str
    row: int

    def read(self, where: str) -> bytes:
        content = cells.read_cell(self.path, self.column, self.row)
        if not isinstance(content, bytes):
            raise InputError(f"{where}: there are no bytes, expected a media file.")
        return content


def in_tar(path: str, name: str, offset: int, size: int) -> str:
    """The address of a member of a tar archive."""
    return f"{path}#{name}@{offset}+{size}"


def in_table(path: str, column: str, row: int) -> str:
    """The address of a cell; fields of a struct column are written COLUMN.FIELD."""
    return f"{path}#{column}@{row}"


def file_of(address: str) -> str:
    """The file on the disk that an address is of."""
    inside = _inside(address)
    return inside.path if inside else address


def name_of(address: str) -> str:
    """What the medium is called: the name of its own file or, where it has one, inside of the other."""
    inside = _inside(address)
    return inside.name if isinstance(inside, _Member) else os.path.basename(file_of(address))


def exists(address: str | os.PathLike) -> bool:
    """Whether there is such a file, or one that has it inside."""
    path = file_of(os.fspath(address))
    # What etils takes for a file may be a pipe, and to open one is to wait for its other end.
    return epath.Path(path).is_file() if "://" in path else os.path.isfile(path)


def opened(address: str | os.PathLike) -> BinaryIO:
    """The bytes as a file, which is a context. Raises InputError as `read_bytes` does."""
    where = os.fspath(address)
    if not exists(where):
        raise InputError(f"{where}: no such file, expected a media file.")
    inside = _inside(where)
    return io.BytesIO(inside.read(where)) if inside else epath.Path(where).open("rb")


def read_bytes(address: str | os.PathLike) -> bytes:
    """All bytes. Raises InputError if the file is missing or, with the medium inside, ends before it or lacks it."""
    with opened(address) as file:
        return file.read()


def _inside(address: str) -> _Member | _Cell | None:
    member, cell = _MEMBER.fullmatch(address), _CELL.fullmatch(address)
    if not (member or cell) or os.path.isfile(address):  # a file's own name may look like an address
        return None
    if member:
        return _Member(member[1], member[2], int(member[3]), int(member[4]))
    return _Cell(cell[1], cell[2], int(cell[3]))
