"""Tar archives of samples, as the webdataset library reads them and as ViCocktail and AVYT are published.

The members of a sample have one name and differ in what follows its first dot:

    KEY.video (or .mp4, …)    the clip, with its sound in it or, if there is one, beside it in KEY.wav (.flac, …)
    KEY.label (or .txt)       what is said
    KEY.sample_id             the clip's id; without one it is the key
    KEY.length                not used: what a clip holds is counted

The split is in the name of an archive: avvn-train-000000.tar, avvn-test_snr_-5_interferer_1-000000.tar. An id that ends
in four numbers, SOURCE_1_2_3_4, tells the recording that the clip is of.
"""

import logging
import re
import tarfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from etils import epath
from tqdm import tqdm

from viavsp_jax.data import addresses
from viavsp_jax.data.ids import id_text
from viavsp_jax.prepare.corpus.entries import Corpus, Entry, clip_id, split_name, split_of_folders

VIDEO, AUDIO = ("video", "mp4", "mov", "mkv", "avi", "webm"), ("wav", "flac", "mp3", "m4a", "ogg", "opus")
TEXT, ID = ("label", "txt"), ("sample_id",)

_LARGEST_TEXT = 2**16  # bytes
_NUMBER = re.compile(r"[-_.]?\d{3,}(?:-of-\d+)?$")  # of an archive among others, at the end of its name
_SPLIT = re.compile(r"(?:^|[-_.])(test_.+|[A-Za-z]+)$")
_SOURCE = re.compile(r"(.+?)(?:_\d+){4}")

log = logging.getLogger(__name__)

Sample = dict[str, tarfile.TarInfo]  # its members by what follows the first dot


def find(data: epath.Path) -> list[epath.Path]:
    """The archives of a folder, in the order of their names, or the one archive that is given."""
    if data.is_file():
        return [data] if data.suffix == ".tar" else []
    return sorted(parent / name for parent, _, names in data.walk() for name in names if name.endswith(".tar"))


def read(data: epath.Path) -> Corpus:
    """Reads names and texts of all archives, no media. Of an archive that is cut off, what is whole is used."""
    paths, entries = find(data), []
    root = data.parent if data.is_file() else data
    with tqdm(paths, desc="archives", unit="file", disable=len(paths) < 2) as bar:
        for path in bar:
            entries += _entries(root, path)
    what = f"{data}: {len(entries):,} clips in {len(paths):,} tar archives of samples (webdataset)"
    return Corpus(what, root, entries)


def _entries(root: epath.Path, path: epath.Path) -> list[Entry]:
    inner = str(path.relative_to(root))
    split = archive_split(path.name) or split_of_folders(inner)
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                samples = _samples(path, archive)
        except tarfile.TarError as error:
            reason = f"unreadable archive: {path}: {error}, expected tar without compression"
            return [Entry(path.name, split, inner, inner, None, reason=reason)]
        return [_entry(inner, split, key, sample, file) for key, sample in samples.items()]


def archive_split(name: str) -> str | None:
    """The split that the name of an archive tells; None if it tells none."""
    found = _SPLIT.search(_NUMBER.sub("", name.removesuffix(".tar")))
    return split_name(found[1]) if found else None


def _samples(path: epath.Path, archive: tarfile.TarFile) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    try:
        for member in archive:
            folder, slash, name = member.name.rpartition("/")
            key, dot, suffix = name.partition(".")
            if member.isreg() and key and dot:
                samples.setdefault(folder + slash + key, {})[suffix.lower()] = member
    except tarfile.ReadError as error:
        if not samples:
            raise
        log.warning("%s: cut off (%s) after %d samples, which are used", path, error, len(samples))
    return samples


def _entry(path: str, split: str | None, key: str, sample: Sample, file: BinaryIO) -> Entry:
    texts = {name: _read_text(_member(sample, names), file) for name, names in (("text", TEXT), ("id", ID))}
    name = texts["id"].strip() if isinstance(texts["id"], str) and texts["id"].strip() else key
    media = [_address(path, _member(sample, names)) for names in (VIDEO, AUDIO)]
    video, audio = media[0], media[1] or media[0]
    reason = ""
    if not video:
        reason = f"no video: {path}: {key} has {', '.join(sample)}, expected one of {', '.join(VIDEO)}"
    elif texts["text"] is None:
        reason = f"no transcript: {path}: {key} has {', '.join(sample)}, expected one of {', '.join(TEXT)}"
    source = _SOURCE.fullmatch(name) or re.fullmatch("(.+)/[^/]+", name)
    source = id_text(source[1]) if source else ""
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
