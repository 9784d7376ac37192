"""Reads tables of delimited text (CSV, TSV), as people and their spreadsheets write them."""

import codecs
import csv
import io
from collections.abc import Sequence

from etils import epath

from viavsp_jax.runtime.errors import InputError

_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_delimited(path: epath.PathLike, columns: Sequence[str], delimiters: str = ",;\t") -> list[dict[str, str]]:
    """The rows of a table whose first line names its columns, `columns` among them; empty lines are passed over.

    Of the delimiters, it is the one by which the first line holds the columns, and most others. Text is UTF-8, or what
    its byte order mark says.

    Raises InputError if it is no such table, a column is missing or there twice, or a line has another number of values
    than the first: a text with commas that lacks its quotes would move the columns behind it.
    """
    content = epath.Path(path).read_bytes()
    encoding = "UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not {encoding} text ({error}), expected a table in UTF-8.") from error
    delimiter, head = _head(text, columns, delimiters, path)
    rows, reader = [], csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for values in reader:
            if values and len(values) != len(head):
                raise InputError(
                    f"{path}: line {reader.line_num} has fewer or more values than there are columns ({len(values)}, "
                    f"not {len(head)}), expected texts with a {_NAMES[delimiter]} in them in quotes."
                )
            if any(values):
                rows.append(dict(zip(head, values, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: not a table ({error}).") from error
    return rows[1:]


def _head(text: str, columns: Sequence[str], delimiters: str, path: epath.PathLike) -> tuple[str, list[str]]:
    """(the delimiter, the names of all columns)"""
    heads = []
    for delimiter in delimiters:
        # Not strictly: quotes look misplaced by a delimiter that is not the table's.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            head = next(filter(any, reader), [])
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num}: not a table ({error}).") from error
        heads.append((delimiter, head))
    fitting = [one for one in heads if all(one[1].count(name) == 1 for name in columns)]
    if fitting:
        return max(fitting, key=lambda one: len(one[1]))
    head = max((head for _, head in heads), key=len)
    wrong = [name for name in columns if head.count(name) != 1]
    raise InputError(
        f"{path}: columns {wrong} are missing or there twice, expected a table with {', '.join(columns)}, "
        f"found {', '.join(head)!r:.90}."
    )
