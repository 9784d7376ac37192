"""Text files of one line for each record, in UTF-8."""

from collections.abc import Iterable

from etils import epath

from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError


def read_lines(path: epath.PathLike) -> list[str]:
    """The lines of a file, ended by newline only. Raises InputError if there is no such file or it is not UTF-8."""
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file, expected it from an earlier run of prepare.")
    try:
        return path.read_bytes().decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}).") from error


def write_lines(path: epath.PathLike, lines: Iterable[str]) -> None:
    """Writes a file, at once or not at all."""
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
