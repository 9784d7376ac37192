"""Stage 1: the clips of a corpus in the VASR layout, as one list for each split.

Reads, under the corpus folder, `metadata.parquet` (id, shard, fps, sampling_rate, transcript,
video_num_frames, audio_num_frames, split), `mapping.json` (id, channel; only to sample by channel), and looks
for `visual/<shard>/<id>.mp4` and `audio/<shard>/<id>.wav`. Writes `{split}.tsv`, `{split}.wrd` and, where
clips were left out, `skipped.jsonl` (split, id, reason).

Transcripts are written in Unicode NFC, with single spaces and without what is not seen: a tab or a line break would
break the files, and one letter in two spellings would be two to the model.
"""

import argparse
import collections
import dataclasses
import logging
import math
import os
import re

import pandas as pd
import pyarrow
from etils import epath
from tqdm import tqdm

from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.data.ids import Files, id_text, read_channels
from viavsp_jax.evaluation.vietnamese import normalize, visible
from viavsp_jax.prepare.lines import read_lines, write_lines
from viavsp_jax.prepare.parquet import read_parquet
from viavsp_jax.prepare.skipped import SKIPPED_FILE, write_skipped
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.options import MAX_SEED, Renamed, new_folder, real, whole

SPLITS = ("train", "valid", "test")
MAX_FRAMES = 500

COLUMNS = ("id", "shard", "fps", "sampling_rate", "transcript", "video_num_frames", "audio_num_frames", "split")
_NAMES = ("id", "shard")  # of files

_LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary files have longer names
_COUNT = re.compile("[0-9]{1,12}")
_LOST_LETTER = "\N{REPLACEMENT CHARACTER}"  # stands where text was damaged

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One line of a manifest: where a clip's media are, how long they are, and what is said."""

    id: str
    source_language: str
    target_language: str
    video: str
    audio: str
    num_frames: int
    num_samples: int
    transcript: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the stage."""
    parser.add_argument("--data", required=True, help="corpus folder: metadata.parquet, visual/, audio/")
    parser.add_argument(
        "--output", type=new_folder("--output"), required=True, help="folder for {split}.tsv and {split}.wrd"
    )
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="splits to list (default: all there are)")
    parser.add_argument(
        "--frac",
        type=real("--frac", above=0, at_most=1),
        default=1.0,
        help="fraction of each channel's clips to take (default 1.0: all)",
    )
    parser.add_argument("--seed", type=whole("--seed", 0, MAX_SEED), default=0, help="seed of the sampling (default 0)")
    for name, what in (("source", "that is spoken"), ("target", "of the transcripts")):
        parser.add_argument(
            f"--{name}_language", f"--{name}-language", action=Renamed, default="vi",
            help=f"language {what} (default vi)",
        )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Writes the manifests. Raises InputError if the corpus folder or a table in it is not as described."""
    for language in (args.source_language, args.target_language):
        if not language.isalnum():
            raise InputError(f"language {language!r} is not usable in a manifest, expected a code like vi.")
    data = epath.Path(args.data).resolve()
    if not os.fspath(data).isprintable():
        raise InputError(f"--data is {os.fspath(data)!r}, expected a path without line breaks and the like.")
    metadata = read_metadata(data)
    there = [split for split in SPLITS if (metadata["split"] == split).any()]
    for split in args.split or there:
        if split not in there:
            raise InputError(f"{data}/metadata.parquet: no clip of split {split!r}, but of {there}.")
        _write_split(metadata[metadata["split"] == split], split, data, args)


def read_metadata(data: epath.Path) -> pd.DataFrame:
    """Reads metadata.parquet, values as they are there, ids and shards as text ("" where there is none).

    Raises InputError if it or a column is missing, it has no row, a split is unknown or an id is not of one clip.
    """
    path = data / "metadata.parquet"
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the table of clips of a corpus in the VASR layout.")
    try:
        with path.open("rb") as file:
            metadata = read_parquet(file, COLUMNS, _NAMES)
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a parquet file ({' '.join(str(error).split())}).") from error
    if wrong := [name for name in COLUMNS if list(metadata.columns).count(name) != 1]:
        raise InputError(f"{path}: columns {wrong} are missing or there twice, expected {list(COLUMNS)}.")
    if not len(metadata):
        raise InputError(f"{path}: has no rows, expected one for each clip.")
    _check_ids(metadata, path)
    return metadata


def _check_ids(metadata: pd.DataFrame, path: epath.Path) -> None:
    for id, split in zip(metadata["id"], metadata["split"], strict=True):
        if not isinstance(split, str) or split not in SPLITS:
            raise InputError(f"{path}: id {id!r} has split {split!r}, expected one of {list(SPLITS)}.")
    known = metadata[metadata["id"] != ""]
    if (repeated := known.duplicated(["split", "id"])).any():
        first = known[repeated].iloc[0]
        raise InputError(f"{path}: id {first['id']!r} occurs twice in split {first['split']!r}.")
    if (repeated := known.duplicated(["shard", "id"])).any():
        first = known[repeated].iloc[0]
        raise InputError(f"{path}: the clip {first['id']!r} is in two splits, expected it in one.")


def sample(clips: pd.DataFrame, frac: float, seed: int, data: epath.Path) -> pd.DataFrame:
    """A fraction of the clips of each channel, in their order; of all alike if there is no mapping.json.

    Raises InputError if mapping.json is not a table with id and channel that names every clip.
    """
    path = data / "mapping.json"
    if not path.exists():
        log.warning("%s: no such file, so clips are sampled without regard to channels", path)
        return clips.sample(frac=frac, random_state=seed).sort_index()
    channels = clips["id"].map(read_channels(path))
    if channels.isna().any():
        first = clips["id"][channels.isna()].iloc[0]
        raise InputError(f"{path}: {channels.isna().sum()} clips have no channel, the first is {first!r}.")
    return clips.groupby(channels, sort=True).sample(frac=frac, random_state=seed).sort_index()


def _write_split(clips: pd.DataFrame, split: str, data: epath.Path, args: argparse.Namespace) -> None:
    usable = [is_file_name(row.id) and is_file_name(row.shard) for row in clips.itertuples()]
    skipped = [
        (row.id, f"unusable id or shard: {row.id!r}, {row.shard!r}, expected names of files")
        for row, is_usable in zip(clips.itertuples(), usable, strict=True)
        if not is_usable
    ]
    clips = clips[usable]
    if args.frac < 1:
        clips = sample(clips, args.frac, args.seed, data)
    tsv, wrd, files = [os.fspath(data)], [], Files(data)
    for row in tqdm(clips.itertuples(), total=len(clips), desc=f"{split} manifest", unit="clip"):
        transcript = clean(row.transcript, args.target_language) if isinstance(row.transcript, str) else ""
        reason, media = _reason_to_skip(row, transcript), []
        for path in () if reason else (f"visual/{row.shard}/{row.id}.mp4", f"audio/{row.shard}/{row.id}.wav"):
            media.append(files.find(path))
            if media[-1] is None:
                reason = f"missing file: {data / path}"
                break
        if reason:
            skipped.append((row.id, reason))
            continue
        name = f"{row.id}-{args.source_language}-{args.target_language}"
        frames, samples = int(_number(row.video_num_frames)), int(_number(row.audio_num_frames))
        tsv.append(f"{name}\t{media[0]}\t{media[1]}\t{frames}\t{samples}")
        wrd.append(transcript)
    if not wrd:
        id, reason = skipped[0] if skipped else ("", "none was sampled")
        raise InputError(f"{data}: no clip of split {split!r} is usable, the first: {id} {reason}.")
    output = epath.Path(args.output)
    write_skipped(output, ({"split": split, "id": id, "reason": reason} for id, reason in skipped), split)
    write_lines(output / f"{split}.wrd", wrd)
    write_lines(output / f"{split}.tsv", tsv)
    counts = collections.Counter(reason.split(":")[0] for _, reason in skipped)
    where = f" {dict(counts)}, see {output / SKIPPED_FILE}" if skipped else ""
    log.info("%s: %d clips listed, %d skipped%s", split, len(wrd), len(skipped), where)


def is_file_name(text: str) -> bool:
    """Whether a text can be the name of one file and nothing else: with ids and shards, paths are made."""
    short = len(text.encode(errors="replace")) <= _LONGEST_NAME
    return short and text.isprintable() and "/" not in text and text.strip() == text and text not in ("", ".", "..")


def clean(transcript: str, language: str = "vi") -> str:
    """As the model is to write it: one spelling of what looks alike, without what nobody sees or says."""
    return normalize(transcript) if language == "vi" else visible(transcript)


def lengths_differ(num_frames: int, num_samples: int) -> bool:
    """Whether video or audio lasts a second more than twice as long as the other: they cannot be of the same speech."""
    shorter, longer = sorted((num_frames / FRAME_RATE, num_samples / SAMPLE_RATE))
    return longer > 2 * shorter + 1


def _number(value: object) -> float:
    """NaN if it is none; a number may be written as text."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _reason_to_skip(row: object, transcript: str) -> str | None:
    """Why a clip cannot be used, as `kind: detail`, or None; its files are not looked at."""
    frames, samples = _number(row.video_num_frames), _number(row.audio_num_frames)
    if _number(row.fps) != FRAME_RATE:
        return f"wrong frame rate: {row.fps}, expected {FRAME_RATE}"
    if _number(row.sampling_rate) != SAMPLE_RATE:
        return f"wrong sampling rate: {row.sampling_rate}, expected {SAMPLE_RATE}"
    if not frames >= 1 or not samples >= 1:  # also if not a number
        return f"no content: {row.video_num_frames} frames, {row.audio_num_frames} samples"
    if frames > MAX_FRAMES:
        return f"too long: {row.video_num_frames} frames, at most {MAX_FRAMES}"
    if lengths_differ(frames, samples):
        return f"different lengths: {frames / FRAME_RATE:.2f} s of video, {samples / SAMPLE_RATE:.2f} s of audio"
    if not frames.is_integer() or not samples.is_integer():
        return f"not whole numbers: {row.video_num_frames} frames, {row.audio_num_frames} samples"
    if not transcript:
        return f"no transcript: {row.transcript!r:.40}"
    if _LOST_LETTER in transcript:
        return f"damaged transcript: has {_LOST_LETTER} in place of a letter"
    if (words := len(transcript.split())) > frames:
        return f"too many words: {words} in {int(frames)} frames"
    return None


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
    paths = (path if path.isascii() else files.find(path) or path for path in fields[1:3])
    video, audio = (os.path.join(root, path) for path in paths)
    return Clip(id_text(names[0]), *names[1:], video, audio, num_frames, num_samples, transcript)
