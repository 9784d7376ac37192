"""Videos with their text beside them, in a file of the same name, as LRS3 and what is made from it have them.

    train/speaker1/0001.mp4   the clip, with its sound in it or beside it in 0001.wav (.flac, …)
    train/speaker1/0001.txt   what is said; of LRS, the line that begins with "Text:"

Texts may also lie in folders of their own, as Auto-AVSR writes them: lrs3_video_seg24s/… and lrs3_text_seg24s/….
The folder that a clip lies in is its source, and a folder called train, valid or test tells the split.
"""

import os
import re
from collections.abc import Sequence

from etils import epath

from viavsp_jax.data.ids import id_text
from viavsp_jax.prepare.corpus.entries import Corpus, Entry, path_id, split_of_folders, walk
from viavsp_jax.prepare.recordings.kinds import SOUNDS, VIDEOS

Files = dict[tuple[str, str], str]  # path by what it is without suffix, and the suffix in lower case

_OF_LRS = re.compile(r"Text:[ \t]*(.*)")
_VIDEO_FOLDER, _TEXT_FOLDER = "_video_", "_text_"  # in the names of Auto-AVSR's folders


def find(data: epath.Path) -> list[str]:
    """The videos of a folder, as paths below it; hidden ones are passed over."""
    if not data.is_dir():
        return []
    return [path for path in walk(data) if os.path.splitext(path)[1].lower() in VIDEOS]


def has_texts(data: epath.Path, videos: Sequence[str]) -> bool:
    """Whether one of these has its text beside it."""
    there = _by_suffix(data)
    return any(_text_file(data, there, path) for path in videos)


def read(data: epath.Path) -> Corpus:
    """Finds the videos, and reads their texts."""
    there = _by_suffix(data)
    entries = [_entry(data, there, path) for path in find(data)]
    return Corpus(f"{data}: {len(entries):,} videos, each with its text in a file beside it", data, entries)


def _by_suffix(data: epath.Path) -> Files:
    """The files of a folder, as paths below it: cameras write .MP4 and .WAV."""
    parted = ((*os.path.splitext(path), path) for path in walk(data))
    return {(stem, suffix.lower()): path for stem, suffix, path in parted}


def _entry(data: epath.Path, there: Files, path: str) -> Entry:
    stem, text = os.path.splitext(path)[0], _text_file(data, there, path)
    sounds = (there[stem, suffix] for suffix in SOUNDS if (stem, suffix) in there)
    transcript, reason = (None, f"no transcript: no {stem}.txt") if text is None else (_read_text(text), "")
    source = id_text(os.path.dirname(path))
    split = split_of_folders(f"{data.name}/{path}")
    return Entry(path_id(path), split, path, next(sounds, path), transcript, source, reason=reason)


def _text_file(data: epath.Path, there: Files, path: str) -> epath.Path | None:
    stem = os.path.splitext(path)[0]
    if beside := there.get((stem, ".txt")):
        return data / beside
    elsewhere = str(data / f"{stem}.txt").replace(_VIDEO_FOLDER, _TEXT_FOLDER)
    return epath.Path(elsewhere) if os.path.isfile(elsewhere) else None


def _read_text(path: epath.Path) -> str | bytes:
    """Bytes where it is no text."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content
    found = _OF_LRS.match(text)
    return found[1] if found else text
