"""Folders of Hugging Face's `datasets`, with the media inside of their tables: Parquet, as on the Hub, or Arrow, as
`save_to_disk` writes it.

    data/train-00000-of-00004.parquet      a split's name begins the name of a file, or is that of its folder
    train/data-00000-of-00002.arrow

A column of media holds bytes, or {bytes, path}; where there are no bytes, the path is that of a file in the folder.
"""

import dataclasses
import os
from collections.abc import Mapping

import pyarrow
from etils import epath
from tqdm import tqdm

from viavsp_jax.data import addresses, cells
from viavsp_jax.data.ids import id_text
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
from viavsp_jax.runtime.errors import InputError

_CACHED = "cache-"  # how files begin that `datasets` writes for itself


def find(data: epath.Path) -> list[epath.Path]:
    """The tables of a folder that hold media."""
    if data.is_file():
        paths = [data]
    else:
        paths = [data / path for path in walk(data)]
    paths = [path for path in paths if path.suffix in (".parquet", ".arrow") and not path.name.startswith(_CACHED)]
    return [path for path in paths if _media_columns(_schema(path))]


def read(data: epath.Path, chosen: Mapping[str, str]) -> Corpus:
    """Reads all tables but for the media in them; `chosen` are columns by what they hold.

    Raises InputError if a table is damaged, or a column that is needed is not there.
    """
    root, paths, entries = data.parent if data.is_file() else data, find(data), []
    found: dict[str, str] = {}
    with tqdm(paths, desc="tables", unit="file", disable=len(paths) < 2) as bar:
        for path in bar:
            found = columns.choose(_schema(path).names, chosen, str(path))
            entries += _entries(root, path, found)
    if "id" not in found and len({one.id for one in entries}) < len(entries):
        # Names of files that are the same in many rows name no clip.
        entries = [dataclasses.replace(one, id=clip_id(one.video)) for one in entries]
    what = f"{data}: {len(entries):,} clips in {len(paths):,} tables with media, as `datasets` writes them; "
    return Corpus(what + columns.described(found), root, entries)


def _schema(path: epath.Path) -> pyarrow.Schema:
    """Of what is no table, one without columns: it is none that holds media."""
    try:
        return cells.read_schema(str(path))
    except InputError:
        return pyarrow.schema([])


def _media_columns(schema: pyarrow.Schema) -> dict[str, str]:
    """{column: where its bytes are}"""
    found = {}
    for field in schema:
        if pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type):
            found[field.name] = field.name
        elif pyarrow.types.is_struct(field.type) and {"bytes", "path"} <= {part.name for part in field.type}:
            found[field.name] = f"{field.name}.bytes"
    return found


def _entries(root: epath.Path, path: epath.Path, found: Mapping[str, str]) -> list[Entry]:
    inner, media = str(path.relative_to(root)), _media_columns(_schema(path))
    if found["video"] not in media:
        raise InputError(
            f"{path}: its column {found['video']!r} holds no media, expected --columns video=COLUMN, with one of "
            f"{', '.join(media)}."
        )
    texts = {what: name for what, name in found.items() if what not in ("video", "audio")}
    values = {what: cells.read_column(str(path), name) for what, name in texts.items()}
    places = {what: _places(path, inner, media[found[what]]) for what in ("video", "audio") if found.get(what) in media}
    split = split_in(path.stem) or split_of_folders(f"{root.name}/{inner}")
    entries = []
    for number, (video, name) in enumerate(places["video"]):
        row = {what: column[number] for what, column in values.items()}
        id = clip_id(row.get("id")) or path_id(os.path.basename(name)) or clip_id(video)
        where = f"{path}: row {number + 1} (id {id!r})"
        own, reason = split_of_row(row["split"], where) if "split" in row else (split, "")
        audio = places["audio"][number][0] if "audio" in places else video
        entries.append(Entry(id, own, video, audio, row["text"], id_text(row.get("speaker")), reason=reason))
    return entries


def _places(path: epath.Path, inner: str, column: str) -> list[tuple[str, str]]:
    """(the address of a medium, what its file was called) in every row of a column."""
    if column.endswith(".bytes"):
        names = list(map(id_text, cells.read_column(str(path), column.replace(".bytes", ".path"))))
    else:
        names = [""] * cells.read_num_rows(str(path))
    if cells.is_empty(str(path), column):  # then the files lie where their paths say
        return [(name, name) for name in names]
    return [(addresses.in_table(inner, column, row), name) for row, name in enumerate(names)]
