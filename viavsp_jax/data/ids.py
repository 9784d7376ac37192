"""Ids of clips: one text for each, whatever table it comes from and however it is spelt there.

Whole numbers, which a column with a gap turns into floats, are texts of digits, and texts are in Unicode NFC: macOS
writes the names of files in NFD. So ids are compared, and written, in one form; files are found under names in any.
"""

import decimal
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from viavsp_jax.runtime.errors import InputError

# With more digits, other numbers are the same float.
_FLOAT = re.compile(r"[0-9]{1,15}\.0")


def id_text(value: Any) -> str:
    """An id (or shard, or channel) as text: 7, 7.0 and "7" are "7"; "" where there is none.

    None is what is missing, of another type, a fraction, or a float so large that other numbers are the same float.
    """
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, bool | np.bool_):
        return ""
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, decimal.Decimal):
        return str(int(value)) if value.is_finite() and value == value.to_integral_value() else ""
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value)) if abs(value) < 2 ** (np.finfo(type(value)).nmant + 1) else ""
    return ""


def column_of_ids(texts: Sequence[str]) -> list[str]:
    """The ids of a column of text; of one that was written from floats, because of a gap in it, without the ".0"."""
    ids = [id_text(text) for text in texts]
    if "" in ids and all(_FLOAT.fullmatch(id) for id in ids if id):
        return [id.removesuffix(".0") for id in ids]
    return ids


def read_channels(path: epath.PathLike) -> dict[str, str]:
    """The channel of each clip by id, from a corpus' mapping.json; none if `path` is empty.

    Raises InputError if there is no such file or it is not a table with id and channel.
    """
    if not path:
        return {}
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the mapping.json of a corpus, with id and channel.")
    try:
        columns = _columns(json.loads(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON table ({error}).") from error
    if not {"id", "channel"} <= columns.keys():
        raise InputError(f"{path}: has columns {list(columns)}, expected id and channel among them.")
    channels = {}
    for row, value in columns["id"].items():
        channel = columns["channel"].get(row)
        if (id := id_text(value)) and channel is not None and channel == channel:  # not NaN
            channels[id] = id_text(channel) or str(channel)
    return channels


def _columns(table: Any) -> dict[str, dict[Any, Any]]:
    """The values of each column by row, of a JSON table in any of the ways that pandas writes and reads them."""
    if isinstance(table, list) and all(isinstance(row, dict) for row in table):
        names = dict.fromkeys(name for row in table for name in row)
        return {name: {number: row.get(name) for number, row in enumerate(table)} for name in names}
    if isinstance(table, dict) and all(isinstance(column, list | dict) for column in table.values()):
        return {name: x if isinstance(x, dict) else dict(enumerate(x)) for name, x in table.items()}
    return {}


class Files:
    """The files of a folder, found whatever Unicode form their names have on the disk."""

    def __init__(self, root: epath.PathLike):
        self._root = epath.Path(root)
        self._listings: dict[str, dict[str, list[str]]] = {}

    def find(self, path: str) -> str | None:
        """A path below the folder as it is on the disk; None if there is no such file."""
        if (self._root / path).is_file():
            return path
        found = [""]
        for part in id_text(path).split("/"):
            found = [os.path.join(folder, name) for folder in found for name in self._names(folder).get(part, ())]
        return next((other for other in found if (self._root / other).is_file()), None)

    def _names(self, folder: str) -> dict[str, list[str]]:
        """What lies in a folder, by names in NFC; listed once."""
        if folder not in self._listings:
            names = self._listings[folder] = {}
            if (self._root / folder).is_dir():
                for path in (self._root / folder).iterdir():
                    names.setdefault(id_text(path.name), []).append(path.name)
        return self._listings[folder]
