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

_OF_LRS = re.compile(r"Text:[ \t]*(.*)")
_VIDEO_FOLDER, _TEXT_FOLDER = "_video_", "_text_"  # in the names of Auto-AVSR's folders


def find(data: epath.Path) -> list[str]:
    """The videos of a folder, as paths below it; hidden ones are passed over."""
    if not data.is_dir():
        return []
    return [path for path in walk(data) if os.path.splitext(path)[1].lower() in VIDEOS]


def has_texts(data: epath.Path, videos: Sequence[str]) -> bool:
    """Whether one of these has its text beside it."""
    return any(_text_file(data, path) for path in videos)


def read(data: epath.Path) -> Corpus:
    """Finds the videos, and reads their texts."""
    videos = find(data)
    entries = [_entry(data, path) for path in videos]
    return Corpus(f"{data}: {len(entries):,} videos, each with its text in a file beside it", data, entries)


def _entry(data: epath.Path, path: str) -> Entry:
    stem, text = os.path.splitext(path)[0], _text_file(data, path)
    sounds = (stem + suffix for suffix in SOUNDS if os.path.isfile(data / (stem + suffix)))
    transcript, reason = (None, f"no transcript: no {stem}.txt") if text is None else (_read_text(text), "")
    source = id_text(os.path.dirname(path))
    return Entry(
        path_id(path), split_of_folders(data, path), path, next(sounds, path), transcript, source, reason=reason
    )


def _text_file(data: epath.Path, path: str) -> epath.Path | None:
    name = os.path.splitext(path)[0] + ".txt"
    places = data / name, epath.Path(str(data / name).replace(_VIDEO_FOLDER, _TEXT_FOLDER))
    return next((place for place in places if os.path.isfile(place)), None)


def _read_text(path: epath.Path) -> str | bytes:
    """Bytes where it is no text."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content
    found = _OF_LRS.match(text)
    return found[1] if found else text
