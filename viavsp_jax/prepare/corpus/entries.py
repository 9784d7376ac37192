"""What a corpus says of its clips, whatever its layout, before any of their media are looked at."""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence

from etils import epath

from viavsp_jax.data.ids import id_text
from viavsp_jax.runtime.errors import InputError

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
    if (found := _CONDITION.fullmatch(name)) and is_file_name(name):
        return f"test_{_NEGATIVE.sub('-', found[1])}"
    return None


def split_of_folders(path: str) -> str | None:
    """The split that a folder on the way to a file is named after, the nearest one; None if none is."""
    return next(filter(None, map(split_name, reversed(path.split("/")[:-1]))), None)


def condition_of(split: str) -> tuple[str, str]:
    """(the split proper, the condition that it is of, CLEAN where its name tells none)"""
    found = _CONDITION.fullmatch(split)
    return ("test", found[1]) if found else (split, CLEAN)


def sorted_splits(names: Iterable[str]) -> list[str]:
    """In the order of training, validation, test and its conditions."""
    return sorted(set(names), key=lambda name: (SPLITS.index(condition_of(name)[0]), name))


def check_split(text: object, where: str) -> str:
    """Our name of a split. Raises InputError, which says `where` it stands, if it is none."""
    name = split_name(text)
    if name is None:
        raise InputError(f"{where} has split {text!r}, expected one of {list(SPLITS)} or test_CONDITION.")
    return name


def is_file_name(text: str) -> bool:
    """Whether a text can be the name of one file and nothing else: with ids and shards, paths are made."""
    short = len(text.encode(errors="replace")) <= _LONGEST_NAME
    return short and text.isprintable() and "/" not in text and text.strip() == text and text not in ("", ".", "..")


def clip_id(text: object) -> str:
    """An id as a corpus has it: with single spaces, and with _ for /, since in some it is a path."""
    return " ".join(id_text(text).replace("/", "_").split())


def path_id(path: str) -> str:
    """The id of a clip by its path in a corpus, without suffix."""
    return clip_id(os.path.splitext(path)[0])
