"""Stage 1: the clips of a corpus in the VASR layout, as one list for each split.

Reads, under the corpus folder, `metadata.parquet` (id, shard, fps, sampling_rate, transcript,
video_num_frames, audio_num_frames, split), `mapping.json` (id, channel; only to sample by channel), and looks
for `visual/<shard>/<id>.mp4` and `audio/<shard>/<id>.wav`. Writes `{split}.tsv`, `{split}.wrd` and, where
clips were left out, `{split}.dropped.tsv` (id, reason).
"""

import argparse
import collections
import dataclasses
import json
import logging
import os
from collections.abc import Sequence

import pandas as pd
from etils import epath
from tqdm import tqdm

from viavsp_jax.data.atomic import write_bytes
from viavsp_jax.errors import InputError

SPLITS = ("train", "valid", "test")
FPS = 25
SAMPLING_RATE = 16_000
MAX_FRAMES = 500

_COLUMNS = (
    "id",
    "shard",
    "fps",
    "sampling_rate",
    "transcript",
    "video_num_frames",
    "audio_num_frames",
    "split",
)

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
    parser.add_argument("--output", required=True, help="folder for {split}.tsv and {split}.wrd")
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="splits to list (default: all there are)")
    parser.add_argument(
        "--frac", type=float, default=1.0, help="fraction of each channel's clips to take (default 1.0: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    parser.add_argument("--source-language", default="vi", help="language that is spoken (default vi)")
    parser.add_argument("--target-language", default="vi", help="language of the transcripts (default vi)")


def run(args: argparse.Namespace) -> None:
    """Writes the manifests. Raises InputError if the corpus folder or a table in it is not as described."""
    if not 0 < args.frac <= 1:
        raise InputError(f"--frac is {args.frac}, expected a fraction above 0 and at most 1.")
    for language in (args.source_language, args.target_language):
        if not language.isalnum():
            raise InputError(f"language {language!r} is not usable in a manifest, expected a code like vi.")
    data = epath.Path(args.data).resolve()
    metadata = read_metadata(data)
    there = [split for split in SPLITS if (metadata["split"] == split).any()]
    for split in args.split or there:
        if split not in set(metadata["split"]):
            raise InputError(f"{data}/metadata.parquet: no clip of split {split!r}, but of {there}.")
        clips = metadata[metadata["split"] == split]
        if (repeated := clips["id"].duplicated()).any():
            first = clips["id"][repeated].iloc[0]
            raise InputError(f"{data}/metadata.parquet: id {first!r} occurs twice in split {split!r}.")
        if args.frac < 1:
            clips = sample(clips, args.frac, args.seed, data)
        _write_split(clips, split, data, args)


def read_metadata(data: epath.Path) -> pd.DataFrame:
    """Reads metadata.parquet, ids and shards as text. Raises InputError if it or a column is missing."""
    path = data / "metadata.parquet"
    if not path.exists():
        raise InputError(f"{path}: no such file, expected the table of clips of a corpus in the VASR layout.")
    try:
        with path.open("rb") as file:
            metadata = pd.read_parquet(file)
    except (ValueError, OSError) as error:  # pyarrow's own errors are kinds of these
        raise InputError(f"{path}: not a parquet file ({error}).") from error
    if missing := [name for name in _COLUMNS if name not in metadata]:
        raise InputError(f"{path}: columns {missing} are missing, expected {list(_COLUMNS)}.")
    return metadata.astype({"id": str, "shard": str, "split": str})


def sample(clips: pd.DataFrame, frac: float, seed: int, data: epath.Path) -> pd.DataFrame:
    """A fraction of the clips of each channel, in their order; of all alike if there is no mapping.json.

    Raises InputError if mapping.json is not a table with id and channel that names every clip.
    """
    path = data / "mapping.json"
    if not path.exists():
        log.warning("%s: no such file, so clips are sampled without regard to channels", path)
        return clips.sample(frac=frac, random_state=seed).sort_index()
    try:
        mapping = pd.DataFrame(json.loads(path.read_text()))
    except ValueError as error:
        raise InputError(f"{path}: not a JSON table ({error}).") from error
    if not {"id", "channel"} <= set(mapping.columns):
        raise InputError(f"{path}: has columns {list(mapping.columns)}, expected id and channel among them.")
    channels = clips["id"].map(dict(zip(mapping["id"].astype(str), mapping["channel"], strict=True)))
    if channels.isna().any():
        first = clips["id"][channels.isna()].iloc[0]
        raise InputError(f"{path}: {channels.isna().sum()} clips have no channel, the first is {first!r}.")
    return clips.groupby(channels, sort=True).sample(frac=frac, random_state=seed).sort_index()


def _write_split(clips: pd.DataFrame, split: str, data: epath.Path, args: argparse.Namespace) -> None:
    tsv, wrd, dropped = [os.fspath(data)], [], []
    for row in tqdm(clips.itertuples(), total=len(clips), desc=f"{split} manifest", unit="clip"):
        video, audio = f"visual/{row.shard}/{row.id}.mp4", f"audio/{row.shard}/{row.id}.wav"
        transcript = " ".join(str(row.transcript or "").split())  # a tab or a new line would break the files
        if reason := _reason_to_drop(row, transcript, data / video, data / audio):
            dropped.append((row.id, reason))
            continue
        name = f"{row.id}-{args.source_language}-{args.target_language}"
        tsv.append(f"{name}\t{video}\t{audio}\t{int(row.video_num_frames)}\t{int(row.audio_num_frames)}")
        wrd.append(transcript)
    if not wrd:
        id, reason = dropped[0] if dropped else ("", "none was sampled")
        raise InputError(f"{data}: no clip of split {split!r} is usable, the first: {id} {reason}.")
    output = epath.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    write_lines(output / f"{split}.wrd", wrd)
    write_lines(output / f"{split}.tsv", tsv)
    (output / f"{split}.dropped.tsv").unlink(missing_ok=True)
    if dropped:
        write_lines(output / f"{split}.dropped.tsv", [f"{id}\t{reason}" for id, reason in dropped])
    counts = collections.Counter(reason.split(":")[0] for _, reason in dropped)
    log.info("%s: %d clips listed, %d dropped %s", split, len(wrd), len(dropped), dict(counts) or "")


def _reason_to_drop(row: object, transcript: str, video: epath.Path, audio: epath.Path) -> str | None:
    """Why a clip cannot be used, as `kind: detail`, or None."""
    if row.fps != FPS:
        return f"wrong frame rate: {row.fps}, expected {FPS}"
    if row.sampling_rate != SAMPLING_RATE:
        return f"wrong sampling rate: {row.sampling_rate}, expected {SAMPLING_RATE}"
    if not row.video_num_frames >= 1 or not row.audio_num_frames >= 1:  # also if not a number
        return f"no content: {row.video_num_frames} frames, {row.audio_num_frames} samples"
    if row.video_num_frames > MAX_FRAMES:
        return f"too long: {row.video_num_frames} frames, at most {MAX_FRAMES}"
    if not transcript or pd.isna(row.transcript):
        return "empty transcript"
    for path in (video, audio):
        if not path.exists():
            return f"missing file: {path}"
    return None


def read_lines(path: epath.PathLike) -> list[str]:
    """The lines of a UTF-8 text file, ended by newline only. Raises InputError if there is no such file."""
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file, expected it from an earlier run of prepare.")
    try:
        return path.read_bytes().decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}).") from error


def write_lines(path: epath.PathLike, lines: Sequence[str]) -> None:
    """Writes lines as UTF-8, at once or not at all."""
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def read_manifest(folder: epath.PathLike, split: str) -> list[Clip]:
    """Reads `{split}.tsv` and `{split}.wrd`.

    Raises:
      InputError: naming file and line, if one is missing, they disagree or a line is not of this form.
    """
    tsv, wrd = epath.Path(folder) / f"{split}.tsv", epath.Path(folder) / f"{split}.wrd"
    root, *lines = read_lines(tsv)
    transcripts = read_lines(wrd)
    if len(lines) != len(transcripts):
        raise InputError(f"{wrd}: has {len(transcripts)} lines, expected {len(lines)} as {tsv} has clips.")
    clips, ids = [], set()
    for number, (line, transcript) in enumerate(zip(lines, transcripts, strict=True), start=2):
        clip = _parse_line(root, line, transcript, f"{tsv}: line {number}")
        if clip.id in ids:
            raise InputError(f"{tsv}: line {number}: id {clip.id!r} occurs twice.")
        ids.add(clip.id)
        clips.append(clip)
    return clips


def _parse_line(root: str, line: str, transcript: str, where: str) -> Clip:
    fields = line.split("\t")
    names = fields[0].rsplit("-", 2)
    if len(fields) != 5 or len(names) != 3 or not all(number.isdecimal() for number in fields[3:]):
        raise InputError(f"{where} is {line!r}, expected <id>-<src>-<dst> video audio frames samples.")
    num_frames, num_samples = int(fields[3]), int(fields[4])
    if not 1 <= num_frames <= MAX_FRAMES:
        raise InputError(f"{where}: id {names[0]!r} has {num_frames} frames, expected 1 to {MAX_FRAMES}.")
    if not transcript.strip():
        raise InputError(f"{where}: id {names[0]!r} has an empty transcript.")
    video, audio = os.path.join(root, fields[1]), os.path.join(root, fields[2])
    return Clip(*names, video, audio, num_frames, num_samples, transcript)
