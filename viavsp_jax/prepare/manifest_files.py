"""The lists of a manifest, `{split}.tsv` and `{split}.wrd`, in the reference's form: written and read.

The first line of a tsv is the corpus folder; each other one has the fields of a `Clip` but for the transcript, which is
the same line of the wrd.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

from etils import epath

from viavsp_jax.data import addresses
from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.data.ids import Files, id_text
from viavsp_jax.prepare.corpus.entries import sorted_splits, split_name
from viavsp_jax.prepare.lines import read_lines, write_lines
from viavsp_jax.runtime.errors import InputError

MAX_FRAMES = 500

_COUNT = re.compile("[0-9]{1,12}")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One line of a manifest: where a clip's media are, how long they are, and what is said."""

    id: str
    source_language: str
    target_language: str
    video: str  # as audio, an address (see data/addresses.py)
    audio: str
    num_frames: int
    num_samples: int
    transcript: str


def lengths_differ(num_frames: int, num_samples: int) -> bool:
    """Whether video or audio lasts a second more than twice as long as the other: they cannot be of the same speech."""
    shorter, longer = sorted((num_frames / FRAME_RATE, num_samples / SAMPLE_RATE))
    return longer > 2 * shorter + 1


def find_file(files: Files, address: str) -> str | None:
    """An address as its file is called on the disk, whose Unicode form may be another; None if there is none."""
    path = addresses.file_of(address)
    found = files.find(path)
    return found and found + address[len(path) :]


def write_manifest(folder: epath.PathLike, split: str, root: str, clips: Sequence[Clip]) -> None:
    """Writes both lists; the media of clips are below `root`, or absolute."""
    lines = [
        f"{clip.id}-{clip.source_language}-{clip.target_language}\t{clip.video}\t{clip.audio}\t{clip.num_frames}\t"
        f"{clip.num_samples}"
        for clip in clips
    ]
    write_lines(epath.Path(folder) / f"{split}.wrd", [clip.transcript for clip in clips])
    write_lines(epath.Path(folder) / f"{split}.tsv", [root, *lines])


def splits_of(folder: epath.PathLike) -> list[str]:
    """The splits that are listed in a folder."""
    folder = epath.Path(folder)
    names = [path.stem for path in folder.glob("*.tsv")] if folder.is_dir() else []
    return sorted_splits(name for name in names if split_name(name) == name)


def read_manifest(folder: epath.PathLike, split: str) -> list[Clip]:
    """Reads `{split}.tsv` and `{split}.wrd`; ids are in NFC, and paths as on the disk, whatever form they have there.

    Raises InputError, naming file and line, if one is missing, they disagree or a line is not of this form.
    """
    tsv, wrd = epath.Path(folder) / f"{split}.tsv", epath.Path(folder) / f"{split}.wrd"
    root, *lines = read_lines(tsv)
    transcripts = read_lines(wrd)
    if not lines:
        raise InputError(f"{tsv}: lists no clip, expected the corpus folder and a line for each clip.")
    if len(lines) != len(transcripts):
        raise InputError(f"{wrd}: has {len(transcripts)} lines, expected {len(lines)} as {tsv} has clips.")
    clips, ids, files = [], set(), Files(root)
    for number, (line, transcript) in enumerate(zip(lines, transcripts, strict=True), start=2):
        clip = _parse_line(files, root, line, transcript, f"{tsv}: line {number}")
        if clip.id in ids:
            raise InputError(f"{tsv}: line {number}: id {clip.id!r} occurs twice.")
        ids.add(clip.id)
        clips.append(clip)
    return clips


def _parse_line(files: Files, root: str, line: str, transcript: str, where: str) -> Clip:
    fields = line.split("\t")
    names = fields[0].rsplit("-", 2)
    if len(fields) != 5 or len(names) != 3 or not all(map(_COUNT.fullmatch, fields[3:])):
        raise InputError(f"{where} is {line!r}, expected <id>-<src>-<dst> video audio frames samples.")
    num_frames, num_samples = int(fields[3]), int(fields[4])
    if not 1 <= num_frames <= MAX_FRAMES:
        raise InputError(f"{where}: id {names[0]!r} has {num_frames} frames, expected 1 to {MAX_FRAMES}.")
    if not transcript.strip():
        raise InputError(f"{where}: id {names[0]!r} has an empty transcript.")
    paths = (path if path.isascii() else find_file(files, path) or path for path in fields[1:3])
    video, audio = (os.path.join(root, path) for path in paths)
    return Clip(id_text(names[0]), *names[1:], video, audio, num_frames, num_samples, transcript)
