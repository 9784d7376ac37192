"""A table of clips beside their media: CSV, TSV, JSON lines or Parquet, with a row for each; or one for each split.

    metadata.csv                              or, as people divide them,
    train.tsv  dev.tsv  test.tsv              or
    train/metadata.csv  test/metadata.csv

Paths in a table are below its folder, or absolute. Without a column of ids, a clip's id is the path of its video;
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
from viavsp_jax.prepare.corpus.entries import (
    Corpus,
    Entry,
    clip_id,
    path_id,
    split_in,
    split_of_folders,
    split_of_row,
    walk,
)
from viavsp_jax.prepare.parquet import read_parquet
from viavsp_jax.runtime.errors import InputError

_JSON_LINES = (".jsonl", ".ndjson")
KINDS = (".csv", ".tsv", ".parquet", *_JSON_LINES)

_MEDIA = ("video", "audio")

Rows = list[dict[str, Any]]


def find(data: epath.Path) -> list[epath.Path]:
    """The tables of a folder or, if it has none, those in folders of it; or the one that is given."""
    if data.is_file():
        return [data] if data.suffix.lower() in KINDS else []
    paths = [path for path in walk(data) if os.path.splitext(path)[1].lower() in KINDS]
    return [data / path for path in paths if "/" not in path] or [data / path for path in paths]


def make_one_corpus(paths: Sequence[epath.Path]) -> bool:
    """Whether tables are parts of one corpus: all are called the same, in several folders, or after splits."""
    return len({path.name for path in paths}) == 1 or all(split_in(path.stem) for path in paths)


def read(data: epath.Path, paths: Sequence[epath.Path], chosen: Mapping[str, str]) -> Corpus:
    """Reads tables of a corpus; `chosen` are columns by what they hold.

    Raises InputError if one is no table, or a column that is needed is not there.
    """
    root, entries = data.parent if data.is_file() else data, []
    for path in paths:
        found, part = _read_entries(root, path, chosen)
        entries += part
    what = f"{paths[0]}: a table" if len(paths) == 1 else f"{data}: {len(paths)} tables"
    return Corpus(f"{what} of {len(entries):,} clips; {columns.described(found)}", root, entries)


def _read_entries(
    root: epath.Path, path: epath.Path, chosen: Mapping[str, str]
) -> tuple[Mapping[str, str], list[Entry]]:
    """({what: column}, the clips)"""
    there, rows = _read(path, chosen)
    if not rows:
        raise InputError(f"{path}: has no rows, expected one for each clip.")
    found = columns.choose(there, chosen, str(path))
    ids = column_of_ids([row[found["id"]] for row in rows]) if "id" in found else None
    inner, entries = str(path.relative_to(root)), []
    split = split_in(path.stem) or split_of_folders(inner)
    for number, row in enumerate(rows):
        values = {what: row.get(name) for what, name in found.items()}
        video, audio = (_place(os.path.dirname(inner), values.get(what)) for what in _MEDIA)
        id = (clip_id(ids[number]) if ids else "") or path_id(video)
        where = f"{path}: row {number + 1} (id {id!r})"
        own, reason = split_of_row(values["split"], where) if "split" in values else (split, "")
        reason = reason if video else f"no video: {where} names none"
        speaker = id_text(values.get("speaker"))
        entries.append(Entry(id, own, video, audio or video, values["text"], speaker, reason=reason))
    return found, entries


def _place(folder: str, value: object) -> str:
    """The path of a file that a table in a folder names, perhaps as Windows writes it."""
    path = id_text(value).strip()
    path = path if "/" in path else path.replace("\\", "/")
    return os.path.normpath(os.path.join(folder, path)) if path else ""


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
