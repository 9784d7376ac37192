"""Reads parquet files that come from elsewhere."""

import os
from collections.abc import Collection
from typing import BinaryIO

import pandas as pd
import pyarrow.parquet


def read_parquet(file: BinaryIO, columns: Collection[str]) -> pd.DataFrame:
    """Those of these columns that a parquet file has, values as they are there.

    Raises ValueError, OSError or pyarrow.ArrowException for what is no parquet file, or a damaged one.
    """
    size = file.seek(0, os.SEEK_END)
    parquet = pyarrow.parquet.ParquetFile(file)
    # Columns of one value, repeated, take next to no bytes; ids are not such.
    if (rows := parquet.metadata.num_rows) > size:
        raise ValueError(f"{rows} rows in {size} bytes")
    fields = [field for field in parquet.schema_arrow if field.name in columns]
    # A text that stands in many rows of a small file is kept once.
    texts = [field.name for field in fields if str(field.type) in ("string", "large_string", "string_view")]
    parquet = pyarrow.parquet.ParquetFile(file, metadata=parquet.metadata, read_dictionary=texts)
    table = parquet.read([field.name for field in fields])
    table.validate(full=True)  # that texts are UTF-8
    # Without what pandas notes there for itself, which may be damaged, too.
    return table.replace_schema_metadata().to_pandas().astype(object)
