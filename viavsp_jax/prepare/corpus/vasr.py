"""The layout of VASR: a table of all clips beside their files.

metadata.parquet   id, shard, fps, sampling_rate, transcript, video_num_frames, audio_num_frames, split
mapping.json       id, channel; may be absent
visual/<shard>/<id>.mp4, audio/<shard>/<id>.wav
"""

import math

import pandas as pd
import pyarrow
import pyarrow.parquet
from etils import epath

from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.data.ids import read_channels
from viavsp_jax.prepare.corpus.entries import SPLITS, Corpus, Entry, Sizes, is_file_name, split_name
from viavsp_jax.prepare.parquet import read_parquet
from viavsp_jax.runtime.errors import InputError

FILE, CHANNELS = "metadata.parquet", "mapping.json"
COLUMNS = ("id", "shard", "fps", "sampling_rate", "transcript", "video_num_frames", "audio_num_frames", "split")
_NAMES = ("id", "shard")  # of files


def is_there(data: epath.Path) -> bool:
    """Whether a folder has the table, however damaged; others call theirs so, too, but have no shards of files."""
    path = data / FILE
    if not path.exists():
        return False
    try:
        with path.open("rb") as file:
            return not {"id", "shard", "split"}.isdisjoint(pyarrow.parquet.read_schema(file).names)
    except (ValueError, OSError, pyarrow.ArrowException):
        return True


def read(data: epath.Path, with_channels: bool) -> Corpus:
    """Reads the table of clips and, if asked for and there, that of channels.

    Raises InputError if one is not as described, or names a clip twice.
    """
    metadata = read_metadata(data)
    channels = read_channels(data / CHANNELS) if with_channels and (data / CHANNELS).exists() else {}
    if channels and channels.keys().isdisjoint(metadata["id"]):
        raise InputError(f"{data / CHANNELS}: none of {len(metadata)} clips has a channel there, expected their ids.")
    entries = [_entry(row, channels.get(row.id, "")) for row in metadata.itertuples()]
    return Corpus(f"{data}: {len(entries):,} clips in the layout of VASR", data, entries)


def read_metadata(data: epath.Path) -> pd.DataFrame:
    """Reads metadata.parquet, values as they are there, ids and shards as text ("" where there is none).

    Raises InputError if it or a column is missing, it has no row, a split is unknown or an id is not of one clip.
    """
    path = data / FILE
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
        if not isinstance(split, str) or split_name(split) != split:
            raise InputError(f"{path}: id {id!r} has split {split!r}, expected one of {list(SPLITS)}.")
    known = metadata[metadata["id"] != ""]
    if (repeated := known.duplicated(["split", "id"])).any():
        first = known[repeated].iloc[0]
        raise InputError(f"{path}: id {first['id']!r} occurs twice in split {first['split']!r}.")
    if (repeated := known.duplicated(["shard", "id"])).any():
        first = known[repeated].iloc[0]
        raise InputError(f"{path}: the clip {first['id']!r} is in two splits, expected it in one.")


def _entry(row: object, channel: str) -> Entry:
    video, audio = f"visual/{row.shard}/{row.id}.mp4", f"audio/{row.shard}/{row.id}.wav"
    if not (is_file_name(row.id) and is_file_name(row.shard)):
        sizes, reason = None, f"unusable id or shard: {row.id!r}, {row.shard!r}, expected names of files"
    else:
        sizes, reason = _sizes(row)
    return Entry(row.id, row.split, video, audio, row.transcript, channel, sizes, reason)


def _sizes(row: object) -> tuple[Sizes | None, str]:
    """How long a clip is by the table, and why it cannot be used, as `kind: detail`, if that is seen there."""
    counts = row.video_num_frames, row.audio_num_frames
    frames, samples = map(_number, counts)
    if _number(row.fps) != FRAME_RATE:
        return None, f"wrong frame rate: {row.fps}, expected {FRAME_RATE}"
    if _number(row.sampling_rate) != SAMPLE_RATE:
        return None, f"wrong sampling rate: {row.sampling_rate}, expected {SAMPLE_RATE}"
    if not frames >= 1 or not samples >= 1:  # also if not a number
        return None, "no content: {} frames, {} samples".format(*counts)
    if any(math.isfinite(count) and not count.is_integer() for count in (frames, samples)):
        return None, "not whole numbers: {} frames, {} samples".format(*counts)
    return Sizes(*(int(count) if math.isfinite(count) else count for count in (frames, samples))), ""


def _number(value: object) -> float:
    """NaN if it is none; a number may be written as text."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
