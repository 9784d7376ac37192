"""Single values of large tables on a disk, Parquet or Arrow, as Hugging Face's `datasets` keeps media in them."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from viavsp_jax.runtime.errors import InputError

# pyarrow is imported where it is used: few corpora need it, and it takes longer to import than a clip to read.


def read_cell(path: str, column: str, row: int) -> Any:
    """The value in a row, from 0, of a column; a field of a struct column is COLUMN.FIELD.

    Raises InputError if the file is no such table, or has no such column or row.
    """
    table = _opened(path, os.stat(path).st_mtime_ns)
    if not row < table.num_rows:
        raise InputError(f"{path}: has {table.num_rows} rows, expected one of number {row}.")
    return table.cell(column, row)


def read_column(path: str, column: str) -> list[Any]:
    """The values in all rows of a column. Raises InputError as `read_cell` does."""
    return _opened(path, os.stat(path).st_mtime_ns).column(column)


def is_empty(path: str, column: str) -> bool:
    """Whether no row has a value in a column. Raises InputError as `read_cell` does."""
    return _opened(path, os.stat(path).st_mtime_ns).is_empty(column)


def read_schema(path: str) -> Any:
    """The pyarrow.Schema of a table. Raises InputError if the file is none."""
    return _opened(path, os.stat(path).st_mtime_ns).schema


def read_num_rows(path: str) -> int:
    """Raises InputError if the file is no table."""
    return _opened(path, os.stat(path).st_mtime_ns).num_rows


class _Parquet:
    """Of Parquet the least that can be read is a row group of a column, so the last two are kept: pictures, sound."""

    def __init__(self, path: str):
        import pyarrow.parquet

        self._path = path
        with _read_errors(path):
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
            self.schema, known = _readable(self._file.schema_arrow), self._file.metadata
        self.num_rows = known.num_rows
        self._ends = np.cumsum([known.row_group(group).num_rows for group in range(known.num_row_groups)])
        self._group = functools.lru_cache(maxsize=2)(self._read_group)

    def cell(self, column: str, row: int) -> Any:
        group = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        return self._group(group, column)[row - first].as_py()

    def column(self, column: str) -> list[Any]:
        with _read_errors(self._path):
            table = self._file.read(columns=[column])
            table.validate(full=True)
            return _column(table, column).to_pylist()

    def is_empty(self, column: str) -> bool:
        known, nulls = self._file.metadata, 0
        for group in range(known.num_row_groups):
            parts = [known.row_group(group).column(index) for index in range(known.num_columns)]
            (part,) = [part for part in parts if part.path_in_schema == column] or [None]
            if part is None or part.statistics is None or not part.statistics.has_null_count:
                return self.num_rows > 0 and self.cell(column, 0) is None
            nulls += part.statistics.null_count
        return nulls == self.num_rows

    def _read_group(self, group: int, column: str) -> Any:
        with _read_errors(self._path):
            table = self._file.read_row_group(group, columns=[column])
            table.validate(full=True)
            return _column(table, column)


class _Arrow:
    """Arrow is not compressed, so the file is mapped, and only what is asked for is read."""

    def __init__(self, path: str):
        import pyarrow

        self._path = path
        with _read_errors(path):
            mapped = pyarrow.memory_map(path)
            try:
                self._table = pyarrow.ipc.open_stream(mapped).read_all()  # as `datasets` writes them
            except pyarrow.ArrowInvalid:
                self._table = pyarrow.ipc.open_file(mapped).read_all()
            self._table.validate(full=True)  # else damaged offsets are followed, wherever they lead
            self.schema = _readable(self._table.schema)
        self.num_rows = self._table.num_rows

    def cell(self, column: str, row: int) -> Any:
        with _read_errors(self._path):
            return _column(self._table.slice(row, 1), column)[0].as_py()

    def column(self, column: str) -> list[Any]:
        with _read_errors(self._path):
            return _column(self._table, column).to_pylist()

    def is_empty(self, column: str) -> bool:
        with _read_errors(self._path):
            return _column(self._table, column).null_count == self.num_rows


@functools.lru_cache(maxsize=32)
def _opened(path: str, changed: int) -> _Parquet | _Arrow:
    return (_Parquet if path.endswith(".parquet") else _Arrow)(path)


def _readable(schema: Any) -> Any:
    """The same. Raises UnicodeDecodeError if names are not UTF-8."""
    import pyarrow

    fields = list(schema)
    for field in fields:  # and those of structs
        field.name.encode()
        fields += field.type if pyarrow.types.is_struct(field.type) else ()
    return schema


def _column(table: Any, column: str) -> Any:
    import pyarrow.compute

    name, *fields = column.split(".")
    values = table.column(name)
    for field in fields:
        values = pyarrow.compute.struct_field(values, field)
    return values


@contextlib.contextmanager
def _read_errors(path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read ({reason}), expected a table of Parquet or Arrow.") from error
