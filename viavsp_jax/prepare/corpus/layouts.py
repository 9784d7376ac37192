"""Finds out how a corpus is laid out, and reads it."""

import argparse
from collections.abc import Callable, Mapping

from etils import epath

from viavsp_jax.prepare.corpus import beside, datasets, table, tars, vasr
from viavsp_jax.prepare.corpus.columns import NAMES
from viavsp_jax.prepare.corpus.entries import Corpus
from viavsp_jax.runtime.errors import InputError

LAYOUTS = {
    "vasr": "metadata.parquet beside visual/ and audio/",
    "webdataset": "tar archives of samples",
    "datasets": "Parquet or Arrow tables with the media in them",
    "table": "a table (CSV, TSV, JSON lines, Parquet) that names media files",
    "folder": "videos, each with its text in a .txt file of the same name",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every stage that reads a corpus."""
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="how the corpus is laid out (default: as what is there says, which is shown)"
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="WHAT=COLUMN",
        help=f"of a table, which column holds what: {', '.join(NAMES)} (default: by usual names)",
    )


def read_corpus(data: epath.Path, layout: str | None, columns: Mapping[str, str], with_sources: bool) -> Corpus:
    """Reads the clips of a corpus, in the layout that is asked for, or in the one that is there.

    `columns` are those of a table, by what they hold. Sources that are in a file of their own are read if asked for.

    Raises InputError if there is none, several might be meant, or what is there is not as its layout has it.
    """
    if not data.exists():
        raise InputError(f"{data}: no such folder or file, expected a corpus.")
    found = [layout] if layout else _found(data)
    if not found:
        known = "; ".join(f"{name}: {what}" for name, what in LAYOUTS.items())
        raise InputError(f"{data}: holds no corpus of a known layout, expected one of these ({known}).")
    if len(found) > 1:
        what = " and ".join(f"{name} ({LAYOUTS[name]})" for name in found)
        raise InputError(f"{data}: could be read as {what}, expected --layout {found[0]} or another of these.")
    readers: dict[str, Callable[[], Corpus]] = {
        "vasr": lambda: vasr.read(data, with_sources),
        "webdataset": lambda: tars.read(data),
        "datasets": lambda: datasets.read(data, columns),
        "table": lambda: table.read(data, _tables(data), columns),
        "folder": lambda: beside.read(data),
    }
    corpus = readers[found[0]]()
    if not corpus.entries:
        raise InputError(f"{data}: holds no clip, expected {LAYOUTS[found[0]]}.")
    return corpus


def _found(data: epath.Path) -> list[str]:
    if data.is_dir() and vasr.is_there(data):
        return ["vasr"]
    if data.is_dir() and not any(data.iterdir()):
        return []
    with_media = datasets.find(data)
    tables = [path for path in table.find(data) if path not in with_media]
    videos = beside.find(data)
    there = {
        "webdataset": tars.find(data),
        "datasets": with_media,
        "table": tables,
        "folder": videos and beside.has_texts(data, videos),
    }
    return [name for name, found in there.items() if found]


def _tables(data: epath.Path) -> list[epath.Path]:
    tables = table.find(data)
    if not tables or not table.make_one_corpus(tables):
        names = ", ".join(path.name for path in tables) or "none"
        raise InputError(
            f"{data}: expected one table there, or one for each split and called after it, or as --data the one to "
            f"use, found {names}."
        )
    return tables
