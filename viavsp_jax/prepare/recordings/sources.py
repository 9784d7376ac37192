"""What clips of mouths are made from: the recordings under a folder, or the clips of a corpus of whole faces."""

import os
import zlib

import pandas as pd
from etils import epath

from viavsp_jax.data import addresses
from viavsp_jax.prepare.corpus.entries import CLEAN, Corpus, clip_id, condition_of, is_file_name
from viavsp_jax.prepare.corpus.splits import with_splits, without_repeated
from viavsp_jax.prepare.recordings.kinds import SOUNDS, VIDEOS
from viavsp_jax.prepare.recordings.mouth_clips import Source
from viavsp_jax.runtime.errors import InputError

_NUM_SHARDS = 256

Skipped = list[dict[str, str]]  # lines of skipped.jsonl


def find_sources(folder: epath.PathLike, output: epath.Path, with_sounds: bool) -> tuple[list[Source], Skipped]:
    """The recordings under a folder, by id, and what skipped.jsonl says of those whose names cannot be ids.

    Raises InputError if there are no others.
    """
    folder, output = epath.Path(folder).resolve(), output.resolve()
    suffixes = VIDEOS + SOUNDS * with_sounds
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one with recordings.")
    sources: dict[str, Source] = {}
    skipped = []
    paths = (parent / name for parent, _, names in folder.walk() for name in names)
    for path in sorted(paths):
        inner = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inner.parts)
        if path.suffix.lower() not in suffixes or hidden or path.is_relative_to(output):
            continue
        id = clip_id(os.fspath(inner.with_suffix("")))
        reason = None
        if id in sources:
            reason = f"has the same id as {sources[id].path}, expected another name."
        elif not is_file_name(id):
            reason = "its path makes no id, expected at most 200 bytes of UTF-8 without control characters."
        elif not path.is_file():
            reason = "no such file, but a link or the like."
        if reason:
            # Not all names of files are UTF-8.
            id, shown = (os.fsencode(text).decode(errors="backslashreplace") for text in (id, path))
            skipped.append({"id": id, "reason": f"{shown}: {reason}"})
            continue
        sources[id] = Source(id, _shard(id), os.fspath(path), _version(path))
    if not sources:
        raise InputError(f"{folder}: holds no recording, expected files that end in one of {' '.join(suffixes)}.")
    return list(sources.values()), skipped


def of_corpus(corpus: Corpus) -> tuple[list[Source], Skipped, pd.DataFrame]:
    """The clips of a corpus, what skipped.jsonl says of those that cannot be used, and a table of transcripts.

    The table has id, shard, transcript and split. Clips of test sets under a condition, which may have the ids of
    others, are in shards of their own.
    """
    sources, skipped, rows = [], [], []
    for one in without_repeated(with_splits(corpus.entries, None, 0)):
        path, audio = (os.path.join(corpus.root, place) for place in (one.video, one.audio))
        reason = one.reason
        if not reason and not is_file_name(one.id):
            reason = "its id cannot be the name of a file, expected at most 200 bytes without control characters."
        if not reason and not addresses.exists(path):
            reason = f"missing file: {path}"
        if reason:
            skipped.append({"id": one.id, "reason": reason})
            continue
        condition = condition_of(one.split)[1]
        shard = _shard(one.id) if condition == CLEAN else f"{condition}_{_shard(one.id)}"
        version = _version(epath.Path(addresses.file_of(path)))
        sources.append(Source(one.id, shard, path, version, None if audio == path else audio))
        rows.append((one.id, shard, one.transcript if isinstance(one.transcript, str) else None, one.split))
    if not sources:
        raise InputError(f"{corpus.root}: no clip can be used, the first: {skipped[0]['id']} {skipped[0]['reason']}")
    return sources, skipped, pd.DataFrame(rows, columns=["id", "shard", "transcript", "split"])


def _shard(id: str) -> str:
    """The same when recordings are added."""
    return f"{zlib.crc32(id.encode()) % _NUM_SHARDS:04d}"


def _version(path: epath.Path) -> list[int]:
    stat = path.stat()
    return [stat.length, stat.mtime]
