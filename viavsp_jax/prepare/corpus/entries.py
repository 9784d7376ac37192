"""What a corpus says of its clips, whatever its layout, before any of their media are looked at."""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence

from etils import epath

from viavsp_jax.data.ids import id_text

SPLITS = ("train", "valid", "test")
CLEAN = "clean"  # the condition of clips as they are
# What others call them.
_SPLITS = {
    **{"train": "train", "training": "train", "trainval": "train", "pretrain": "train", "tr": "train"},
    **{"valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "development": "valid"},
    **{"test": "test", "testing": "test", "eval": "test", "evaluation": "test"},
}
# A test set that was recorded, or made, under a condition of its own.
_CONDITION = re.compile(r"test_(.+)")
# A ratio below 0 as Hugging Face's names of splits, which take no hyphen, have it.
_NEGATIVE = re.compile(r"(?<=snr_)n(?=\d)")

# ViCocktail's and AVYT's test sets, in names of archives.
_OF_CORPUS = re.compile(r"(test_snr_[-n]?\d+_interferer_\d+)")
_NUMBERS = re.compile(r"(?:[-_. ]?\(?\d+\)?(?:-of-\d+)?)+$")  # of a file among others, at the end of its name

_LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary files have longer names


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How long the media of a clip are."""

    frames: int  # at 25 a second
    samples: int  # at 16 kHz


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip as a corpus has it."""

    id: str
    split: str | None  # train, valid, test or test_CONDITION; None where the corpus does not say
    video: str  # an address (see data/addresses.py), below the corpus folder or absolute
    audio: str  # the same where the sound is in the video
    transcript: object  # what is there in its place, text or not
    source: str = ""  # the speaker or the recording that it is of: clips of one are in one split
    sizes: Sizes | None = None  # as the corpus says
    reason: str = ""  # why it cannot be used, if that is known


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All clips of a folder, in the order in which they are listed there."""

    what: str  # was found, for people
    root: epath.Path
    entries: Sequence[Entry]


def split_name(text: object) -> str | None:
    """Our name of a split, by what others call it; None if it names none.

    Test sets of several conditions are test_CONDITION, as test_snr_-5_interferer_1.
    """
    name = id_text(text).strip().lower()
    if name in _SPLITS:
        return _SPLITS[name]
    if (found := _CONDITION.fullmatch(name)) and is_file_name(name) and not _words(found[1]):
        return f"test_{_NEGATIVE.sub('-', found[1])}"
    return None


def split_in(name: str) -> str | None:
    """The split that a longer name tells: as a part of it between hyphens or, if only one is named, as any word of it.

    None if it tells none, or several.
    """
    if of_corpus := _OF_CORPUS.search(name.lower()):
        return split_name(of_corpus[1])
    stem = _NUMBERS.sub("", name)
    exact = split_name(stem) or split_name(stem.rpartition("-")[2])
    words = _words(stem)
    return exact or (words.pop() if len(words) == 1 else None)


def _words(name: str) -> set[str]:
    """The splits that words of a name tell."""
    return {_SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLITS}


def split_of_folders(path: str) -> str | None:
    """The split that a folder on the way to a file tells, the nearest one; None if none does."""
    for folder in reversed(path.split("/")[:-1]):
        if of_corpus := _OF_CORPUS.search(folder.lower()):
            return split_name(of_corpus[1])
        if len(words := _words(folder)) == 1:
            return words.pop()
    return None


def condition_of(split: str) -> tuple[str, str]:
    """(the split proper, the condition that it is of, CLEAN where its name tells none)"""
    found = _CONDITION.fullmatch(split)
    return ("test", found[1]) if found else (split, CLEAN)


def sorted_splits(names: Iterable[str]) -> list[str]:
    """In the order of training, validation, test and its conditions."""
    return sorted(set(names), key=lambda name: (SPLITS.index(condition_of(name)[0]), name))


def split_of_row(text: object, where: str) -> tuple[str, str]:
    """(our name of a split, why a clip cannot be used that has none: it is listed as one of training)"""
    if name := split_name(text):
        return name, ""
    return "train", f"unknown split: {where} has split {text!r:.90}, expected one of {list(SPLITS)} or test_CONDITION"


def is_file_name(text: str) -> bool:
    """Whether a text can be the name of one file and nothing else: with ids and shards, paths are made."""
    short = len(text.encode(errors="replace")) <= _LONGEST_NAME
    return short and text.isprintable() and "/" not in text and text.strip() == text and text not in ("", ".", "..")


def clip_id(text: object) -> str:
    """An id as a corpus has it: with single spaces, and with _ for /, since in some it is a path."""
    return " ".join(id_text(text).replace("/", "_").split())


def walk(folder: epath.Path) -> list[str]:
    """The files below a folder, as paths in it, sorted; hidden ones are passed over, links are followed once."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in names if not name.startswith(".")]
    return sorted(path for path in found if os.path.isfile(os.path.join(folder, path)))


def path_id(path: str) -> str:
    """The id of a clip by its path in a corpus, without suffix."""
    return clip_id(os.path.splitext(os.path.normpath(path))[0]) if path else ""
