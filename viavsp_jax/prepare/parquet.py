"""Parquet files: read whatever wrote them, written whole."""

import os
from collections.abc import Collection
from typing import BinaryIO

import pandas as pd
import pyarrow.parquet
from etils import epath

from viavsp_jax.data.ids import id_text
from viavsp_jax.runtime.atomic import atomic_write

_TEXTS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")  # texts, as writers of old have them


def read_parquet(file: BinaryIO, columns: Collection[str], ids: Collection[str]) -> pd.DataFrame:
    """Those of these columns that a parquet file has, values as they are there, but for those of `ids`, which are text.

    Raises ValueError, OSError or pyarrow.ArrowException for what is no parquet file, or a damaged one.
    """
    size = file.seek(0, os.SEEK_END)
    parquet = pyarrow.parquet.ParquetFile(file)
    # Columns of one value, repeated, take next to no bytes; ids are not such.
    if (rows := parquet.metadata.num_rows) > size:
        raise ValueError(f"{rows} rows in {size} bytes")
    fields = [field for field in parquet.schema_arrow if field.name in columns]
    # A text that stands in many rows of a small file is kept once.
    texts = [field.name for field in fields if str(field.type) in _TEXTS + _BYTES]
    parquet = pyarrow.parquet.ParquetFile(file, metadata=parquet.metadata, read_dictionary=texts)
    table = parquet.read([field.name for field in fields])
    decoded, in_bytes = pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), [str(x.type) in _BYTES for x in fields]
    schema = [x.with_type(decoded) if is_bytes else x for x, is_bytes in zip(table.schema, in_bytes, strict=True)]
    table = table.cast(pyarrow.schema(schema))
    table.validate(full=True)  # that texts are UTF-8
    # Without what pandas notes there for itself, which may be damaged, too; whole numbers with a gap stay whole.
    frame = table.replace_schema_metadata().to_pandas(integer_object_nulls=True).astype(object)
    for name in set(ids) & set(frame):
        if table.column_names.count(name) == 1:  # the caller says what is wrong otherwise
            frame[name] = pd.Series(_ids(table[name]), dtype=object)
    return frame


def write_parquet(path: epath.PathLike, table: pd.DataFrame) -> None:
    """Writes a table without its index, at once or not at all."""
    with atomic_write(path) as temporary:
        table.to_parquet(temporary, index=False)


def _ids(column: pyarrow.ChunkedArray) -> list[str]:
    """The ids of a column of any type; a text that stands in many rows is kept once."""
    ids = []
    for chunk in column.chunks:
        if isinstance(chunk, pyarrow.DictionaryArray):
            texts = _texts(chunk.dictionary)
            ids += ["" if index is None else texts[index] for index in chunk.indices.to_pylist()]
        else:
            ids += _texts(chunk)
    return ids


def _texts(array: pyarrow.Array) -> list[str]:
    # As Python's floats, those of 32 bits would look more exact than they are.
    is_float = pyarrow.types.is_floating(array.type)
    return [id_text(x) for x in (array.to_numpy(zero_copy_only=False) if is_float else array.to_pylist())]
