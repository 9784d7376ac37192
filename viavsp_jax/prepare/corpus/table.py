"""A table of clips beside their media: CSV, TSV, JSON lines or Parquet, with a row for each.

Paths in it are below the table's folder, or absolute. Without a column of ids, a clip's id is the path of its video;
without one of sounds, the sound is in the video.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow
from etils import epath

from viavsp_jax.data.delimited import read_delimited
from viavsp_jax.data.ids import column_of_ids, id_text
from viavsp_jax.prepare.corpus import columns
from viavsp_jax.prepare.corpus.entries import Corpus, Entry, check_split, clip_id, path_id
from viavsp_jax.prepare.parquet import read_parquet
from viavsp_jax.runtime.errors import InputError

_JSON_LINES = (".jsonl", ".ndjson")
KINDS = (".csv", ".tsv", ".parquet", *_JSON_LINES)

_MEDIA = ("video", "audio")

Rows = list[dict[str, Any]]


def find(data: epath.Path) -> list[epath.Path]:
    """The tables of a folder, or the one that is given."""
    if data.is_file():
        return [data] if data.suffix.lower() in KINDS else []
    return sorted(path for path in data.iterdir() if path.suffix.lower() in KINDS and path.is_file())


def read(path: epath.Path, chosen: Mapping[str, str]) -> Corpus:
    """Reads one table; `chosen` are columns by what they hold.

    Raises InputError if it is none, a column that is needed is not there, or a row has no usable split.
    """
    there, rows = _read(path, chosen)
    if not rows:
        raise InputError(f"{path}: has no rows, expected one for each clip.")
    found = columns.choose(there, chosen, str(path))
    ids = column_of_ids([row[found["id"]] for row in rows]) if "id" in found else None
    entries = []
    for number, row in enumerate(rows):
        values = {what: row.get(name) for what, name in found.items()}
        id = (clip_id(ids[number]) if ids else "") or path_id(id_text(values["video"]).strip())
        entries.append(_entry(values, id, f"{path}: row {number + 1} (id {id!r})"))
    what = f"{path}: a table of {len(entries):,} clips; {columns.described(found)}"
    return Corpus(what, path.parent, entries)


def _entry(values: Mapping[str, Any], id: str, where: str) -> Entry:
    video, audio = (os.path.normpath(path) if path else "" for path in (id_text(values.get(x)).strip() for x in _MEDIA))
    split = check_split(values["split"], where) if "split" in values else None
    reason = "" if video else f"no video: {where} names none"
    return Entry(id, split, video, audio or video, values["text"], id_text(values.get("speaker")), reason=reason)


def _read(path: epath.Path, chosen: Mapping[str, str]) -> tuple[Sequence[str], Rows]:
    """(names of columns, rows)"""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path)
    rows = _read_json_lines(path) if suffix in _JSON_LINES else read_delimited(path, list(chosen.values()))
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _read_parquet(path: epath.Path) -> tuple[Sequence[str], Rows]:
    try:
        with path.open("rb") as file:
            names = pyarrow.parquet.read_schema(file).names
            table = read_parquet(file, names, ())
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a parquet file ({' '.join(str(error).split())}).") from error
    return names, table.to_dict("records")


def _read_json_lines(path: epath.Path) -> Rows:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is not JSON ({error}), expected an object for each clip."
            ) from error
        if row is not None and not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is no JSON object, expected one for each clip.")
        rows += [row] if row else []
    return rows
