"""Tar archives of samples, as the webdataset library reads them and as ViCocktail and AVYT are published.

The members of a sample have one name and differ in what follows the dot behind it:

    KEY.video (or .mp4, …)    the clip, with its sound in it or, if there is one, beside it in KEY.wav (.flac, …)
    KEY.label (or .txt)       what is said
    KEY.sample_id             the clip's id; without one it is the key
    KEY.length                not used: what a clip holds is counted

The split is in the name of an archive, avvn-train-000000.tar, avvn-test_snr_-5_interferer_1-000000.tar, or of a folder.
An id that ends in four numbers, SOURCE_1_2_3_4, tells the recording that the clip is of.
"""

import collections
import dataclasses
import logging
import re
import tarfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from etils import epath
from tqdm import tqdm

from viavsp_jax.data import addresses
from viavsp_jax.data.ids import id_text
from viavsp_jax.prepare.corpus.entries import (
    CLEAN,
    Corpus,
    Entry,
    clip_id,
    condition_of,
    split_in,
    split_of_folders,
    walk,
)

VIDEO, AUDIO = ("video", "mp4", "mov", "mkv", "avi", "webm"), ("wav", "flac", "mp3", "m4a", "ogg", "opus")
TEXT, ID = ("label", "txt"), ("sample_id",)
_KNOWN = (*VIDEO, *AUDIO, *TEXT, *ID, "length")

_LARGEST_TEXT = 2**16  # bytes
_SOURCE = re.compile(r"(.+?)(?:_\d+){4}|(.+)/[^/]+")
_BLOCK = 2**16
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

log = logging.getLogger(__name__)

Sample = dict[str, tarfile.TarInfo]  # its members by suffix, in lower case


def find(data: epath.Path) -> list[epath.Path]:
    """The archives of a folder, in the order of their names, or the one archive that is given."""
    if data.is_file():
        return [data] if data.suffix == ".tar" else []
    return [data / path for path in walk(data) if path.lower().endswith((".tar", *_COMPRESSED))]


def read(data: epath.Path) -> Corpus:
    """Reads names and texts of all archives, no media. Of an archive that is damaged, what is whole is used."""
    paths, entries, keys = find(data), [], []
    root = data.parent if data.is_file() else data
    with tqdm(paths, desc="archives", unit="file", disable=len(paths) < 2) as bar:
        for path in bar:
            found = _entries(root, path)
            keys += [clip_id(f"{path.relative_to(root)}/{key}") for key, _ in found]
            entries += [entry for _, entry in found]
    plain = collections.Counter(one.id for one in entries if condition_of(one.split or "train")[1] == CLEAN)
    repeated = [id for id, count in plain.items() if count > 1]
    if repeated and all(id.isdecimal() for id in repeated):  # numbers that begin anew in each archive name no clip
        entries = [dataclasses.replace(one, id=key) for key, one in zip(keys, entries, strict=True)]
    what = f"{data}: {len(entries):,} clips in {len(paths):,} tar archives of samples (webdataset)"
    return Corpus(what, root, entries)


def _entries(root: epath.Path, path: epath.Path) -> list[tuple[str, Entry]]:
    """(key, clip) of all samples, and one of the archive itself where not all of it can be read."""
    inner = str(path.relative_to(root))
    split = split_in(path.name.removesuffix(".tar")) or split_of_folders(f"{root.name}/{inner}")
    try:
        with path.open("rb") as file, tarfile.TarFile(fileobj=file) as archive:
            samples, trouble = _samples(archive)
            found = [(key, _entry(inner, split, key, sample, file)) for key, sample in samples.items()]
            trouble = trouble or _rest(archive, file)
    except (tarfile.TarError, OSError) as error:
        found, trouble = [], f"{error}, expected tar without compression"
    if trouble:
        log.warning("%s: %s; %d samples are used", path, trouble, len(found))
        reason = f"unreadable archive: {path}: {trouble}"
        found.append((path.name, Entry(path.name, split, inner, inner, None, reason=reason)))
    return found


def _samples(archive: tarfile.TarFile) -> tuple[dict[str, Sample], str]:
    """Members by sample; a suffix that a sample has twice becomes "". And what is damaged, if anything is."""
    samples: dict[str, Sample] = {}
    try:
        for member in archive:
            folder, slash, name = id_text(member.name).removeprefix("./").rpartition("/")
            key, dot, suffix = _parted(name)
            if member.isreg() and key and dot:
                sample = samples.setdefault(folder + slash + key, {})
                sample["" if suffix.lower() in sample else suffix.lower()] = member
    except tarfile.ReadError as error:
        if not samples:
            raise
        return samples, f"cut off ({error})"
    return samples, ""


def _parted(name: str) -> tuple[str, str, str]:
    """(key, dot, suffix): what webdataset takes for a suffix begins at the first dot, but keys of others have dots."""
    key, dot, suffix = name.rpartition(".")
    return (key, dot, suffix) if suffix.lower() in _KNOWN else name.partition(".")


def _rest(archive: tarfile.TarFile, file: BinaryIO) -> str:
    """What is behind the last member that was read, if it is not the end."""
    file.seek(archive.offset)
    while block := file.read(_BLOCK):
        if any(block):
            return f"damaged, or another archive was appended, at byte {archive.offset:,}"
    return ""


def _entry(path: str, split: str | None, key: str, sample: Sample, file: BinaryIO) -> Entry:
    texts = {name: _read_text(_member(sample, names), file) for name, names in (("text", TEXT), ("id", ID))}
    name = texts["id"].strip() if isinstance(texts["id"], str) and texts["id"].strip() else key
    media = [_address(path, _member(sample, names)) for names in (VIDEO, AUDIO)]
    video, audio = media[0], media[1] or media[0]
    reason = ""
    if "" in sample:
        reason = f"repeated member: {path}: {sample[''].name}, expected each sample to have a name of its own"
    elif not video:
        reason = f"no video: {path}: {key} has {', '.join(sample)}, expected one of {', '.join(VIDEO)} behind a dot"
    elif texts["text"] is None:
        reason = f"no transcript: {path}: {key} has {', '.join(sample)}, expected one of {', '.join(TEXT)}"
    found = _SOURCE.fullmatch(name)
    source = id_text(found[1] or found[2]) if found else ""
    return Entry(clip_id(name), split, video or path, audio or path, texts["text"], source, reason=reason)


def _member(sample: Mapping[str, tarfile.TarInfo], names: Iterable[str]) -> tarfile.TarInfo | None:
    return next((sample[name] for name in names if name in sample), None)


def _address(path: str, member: tarfile.TarInfo | None) -> str:
    return addresses.in_tar(path, member.name, member.offset_data, member.size) if member else ""


def _read_text(member: tarfile.TarInfo | None, file: BinaryIO) -> str | bytes | None:
    """None where there is no member, bytes where it is no text."""
    if member is None:
        return None
    file.seek(member.offset_data)
    content = file.read(min(member.size, _LARGEST_TEXT))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content
