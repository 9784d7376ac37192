"""Which files a command transcribes, and where what is made of them goes."""

import collections
import contextlib
import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import av

from viavsp_jax.prepare.recordings.recording import CONTAINERS
from viavsp_jax.runtime.atomic import check_writable
from viavsp_jax.runtime.errors import InputError

_MORE_SUFFIXES = {"m4v", "oga", "ogv", "opus", "vob"}  # FFmpeg tells these formats by their content alone
_COPY, _SHEET = ".subtitled.mp4", ".mouths.png"


def recordings_in(given: Sequence[str]) -> list[Path]:
    """The files that are given and, of folders, the recordings in them, by their names and their numbers.

    Raises InputError if one is missing or no regular file, or a folder holds no recording.
    """
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = sorted(filter(_is_recording, path.iterdir()), key=_by_number)
            if not inside:
                raise InputError(f"{path}: no recording in this folder, expected video or audio files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:  # a pipe or a device never ends
            what = "is no regular file" if path.exists() else "no such file"
            raise InputError(f"{path}: {what}, expected a video or audio file, or a folder with such files")
    return list(dict.fromkeys(found))


def _is_recording(path: Path) -> bool:
    if path.name.startswith(".") or path.name.endswith(_COPY):  # the latter is one of our own
        return False
    return path.suffix.lower().removeprefix(".") in _suffixes() and path.is_file()


@functools.cache
def _suffixes() -> set[str]:
    """Of names of media files, as FFmpeg knows them from reading or from writing."""
    found = set(_MORE_SUFFIXES)
    for name, mode in itertools.product(CONTAINERS.split(","), "rw"):
        with contextlib.suppress(ValueError):  # some can only be read
            found |= av.ContainerFormat(name, mode).extensions
    return found


def _by_number(path: Path) -> list[tuple[int, str]]:
    """So that clip 2 comes before clip 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def outputs(
    files: Sequence[Path], folder: str | None, formats: Sequence[str], video: bool, mouths: bool
) -> dict[Path, dict[str, Path]]:
    """The files to write for each, by format; `video` is the copy with subtitles, `sheet` the picture of mouths.

    They have the name of the recording without its suffix or, where two have the same, with it; they lie beside it or
    in `folder`.

    Raises InputError, before any work, if one cannot be written, is that of two recordings or is one of them.
    """
    endings = {form: f".{form}" for form in formats}
    if video:
        endings["video"] = _COPY
    if mouths:
        endings["sheet"] = _SHEET
    places = {file: (Path(folder) if folder else file.parent) / file.stem for file in files}
    shared = collections.Counter(places.values())
    for file, place in places.items():
        if shared[place] > 1:
            places[file] = place.with_name(file.name)
    found = {
        file: {form: place.with_name(place.name + ending) for form, ending in endings.items()}
        for file, place in places.items()
    }
    counts = collections.Counter(path for paths in found.values() for path in paths.values())
    inputs = {file.resolve() for file in files}
    for path, count in counts.items():
        if count > 1:
            raise InputError(f"{count} of the files would be written to {path}: transcribe them one by one")
        if path.resolve() in inputs:
            raise InputError(f"{path} would be overwritten, which is one of the files")
    if folder:
        check_writable(folder, "--output", folder=True)
    for path in counts:
        check_writable(path)
    return found
