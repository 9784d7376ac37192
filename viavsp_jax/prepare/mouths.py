"""Stage 0, for a corpus of one's own: mouth crops and speech in the layout of VASR, from recordings of any kind.

Reads all recordings under a folder; the id of one is its path there without suffix, with _ for /. Writes, under the
output folder, `visual/<shard>/<id>.mp4` (96x96, grey, 25 fps), `audio/<shard>/<id>.wav` (16 kHz, mono),
`mouths.parquet` (id, shard, source, frames, samples, found: the share of the pictures in which the face was seen) and,
where recordings gave no clip, `skipped.jsonl` (id, reason). With a table of transcripts also `metadata.parquet`, with
which the folder is ready for the manifest stage.

A run that was stopped goes on with the recordings that are missing, have changed since, or were done with another mean
face.
"""

import argparse
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from typing import Any

import pandas as pd
import pyarrow
from etils import epath
from tqdm import tqdm

from viavsp_jax.data.delimited import read_delimited
from viavsp_jax.data.features import FRAME_RATE, SAMPLE_RATE
from viavsp_jax.data.ids import column_of_ids
from viavsp_jax.prepare import cluster
from viavsp_jax.prepare.corpus import layouts
from viavsp_jax.prepare.corpus.columns import parse
from viavsp_jax.prepare.corpus.entries import SPLITS, clip_id
from viavsp_jax.prepare.corpus.layouts import read_corpus
from viavsp_jax.prepare.corpus.vasr import COLUMNS
from viavsp_jax.prepare.manifest_files import MAX_FRAMES
from viavsp_jax.prepare.parquet import read_parquet, write_parquet
from viavsp_jax.prepare.recordings import faces
from viavsp_jax.prepare.recordings.sources import find_sources, of_corpus
from viavsp_jax.prepare.skipped import SKIPPED_FILE, write_skipped
from viavsp_jax.prepare.workers import WorkerDied, Workers
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.options import new_folder_on_disk, whole

_ATTEMPTS = 2  # at a recording whose process died
# Seconds for a second of a recording, all of its sound, or for writing a clip; what takes longer will not end.
_PATIENCE = 1800
_TRANSCRIPT_COLUMNS = ["id", "transcript", "split"]
_PARQUET = b"PAR1"  # how a file of parquet begins

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the stage."""
    parser.epilog = faces.LICENCE
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--videos", help="folder with recordings, searched through to the bottom")
    place.add_argument(
        "--data", help="corpus of whole faces with transcripts and splits, in any layout that the manifest stage knows"
    )
    layouts.add_arguments(parser)
    parser.add_argument("--output", type=new_folder_on_disk("--output"), required=True, help="folder of the corpus")
    parser.add_argument(
        "--transcripts",
        metavar="FILE",
        help="table (parquet, or CSV with commas, semicolons or tabs) with id, transcript and split (train, valid or "
        "test): writes metadata.parquet, too; the id of a recording is its path under --videos without suffix, with _ "
        "for /",
    )
    parser.add_argument(
        "--mean_face",
        metavar="FILE",
        help="68 points of a face in a square of 256 pixels (.npy), as AV-HuBERT's authors used (default: our own)",
    )
    parser.add_argument(
        "--audio_only_without_face",
        action="store_true",
        help="keep recordings without pictures or without a face in most of them, with a black video, for use with "
        "--modalities audio (default: they are skipped)",
    )
    parser.add_argument(
        "--workers",
        type=whole("--workers", 0),
        help="processes, each with one recording at a time; 0: only this one (default: as many as there are cores)",
    )
    cluster.add_arguments(parser, "processes of this machine", "those of all machines of a Ray cluster")


def run(args: argparse.Namespace) -> None:
    """Makes the clips that are missing. Raises InputError if an option or a table is not usable, or no recording is."""
    if args.runner == "local" and args.ray_address is not None:
        raise InputError("--ray_address goes with --runner ray.")
    if args.workers == 0 and args.runner == "ray":
        raise InputError("--workers is 0, expected at least 1 with --runner ray.")
    if args.data and args.transcripts:
        raise InputError("--transcripts goes with --videos, with --data the corpus has them.")
    faces.require_packages()
    # They need packages that only this stage and the application do.
    from viavsp_jax.prepare.recordings.mouth import load_mean_face
    from viavsp_jax.prepare.recordings.mouth_clips import ClipMaker

    output = epath.Path(args.output)
    transcripts = _read_transcripts(args.transcripts) if args.transcripts else None
    mean_face = load_mean_face(args.mean_face) if args.mean_face else None
    if args.data:
        corpus = read_corpus(epath.Path(args.data).resolve(), args.layout, parse(args.columns), with_sources=False)
        log.info("%s", corpus.what)
        sources, skipped, transcripts = of_corpus(corpus)
    else:
        sources, skipped = find_sources(args.videos, output, args.audio_only_without_face)
    make_maker = functools.partial(ClipMaker, output, mean_face, args.audio_only_without_face)
    notes = []
    if args.runner == "ray":
        address = args.ray_address or "local"
        results = cluster.map_unordered(make_maker, sources, address=address, max_workers=args.workers)
    else:
        results = _run_here(make_maker(), sources, args.workers)
    with contextlib.closing(results), tqdm(total=len(sources), desc="mouths", unit="recording") as bar:
        for source, note in results:
            bar.update()
            if isinstance(note, InputError):
                skipped.append({"id": source.id, "reason": " ".join(str(note).split())})
            elif "reason" in note:
                skipped.append({"id": source.id, "reason": note["reason"]})
            else:
                notes.append(note)
    notes.sort(key=lambda note: note["id"])
    skipped.sort(key=lambda line: (line["id"], line["reason"]))
    _write_tables(output, notes, skipped, transcripts)


def _run_here(make: Callable, sources: Sequence, count: int | None) -> Iterator[tuple]:
    """Each source with its note as they are done or, if the process that was at it died twice, an InputError."""
    if count == 0:
        yield from ((source, make(source)) for source in sources)
        return

    def done(source: Any) -> dict | InputError:
        for _ in range(_ATTEMPTS):
            try:
                return workers.do(make, source)
            except WorkerDied as error:
                death = error
        return InputError(
            f"{source.path}: the process that read this recording died twice ({death}), expected one that can be "
            "decoded in the memory there is."
        )

    with Workers(count or os.cpu_count() or 1, _PATIENCE) as workers:
        tasks = {workers.submit(done, source): source for source in sources}
        for task in as_completed(tasks):
            yield tasks[task], task.result()


def _read_transcripts(path: str) -> pd.DataFrame:
    """The table id, transcript (None where it is no text), split. Raises InputError if it is not such a table."""
    table = _read_table(path)
    if wrong := [name for name in _TRANSCRIPT_COLUMNS if list(table.columns).count(name) != 1]:
        raise InputError(f"{path}: columns {wrong} are missing or there twice, expected id, transcript and split.")
    ids, splits = [clip_id(id) for id in column_of_ids(table["id"])], list(table["split"])
    known = pd.Series([id for id in ids if id], dtype=str)
    if (repeated := known.duplicated()).any():
        raise InputError(f"{path}: id {known[repeated].iloc[0]!r} occurs twice.")
    for id, split in zip(ids, splits, strict=True):
        if not isinstance(split, str) or split not in SPLITS:
            raise InputError(f"{path}: id {id!r} has split {split!r}, expected one of {list(SPLITS)}.")
    if without := ids.count(""):
        log.warning("%s: %d rows have no id", path, without)
    # What is no text is left to the manifest stage, which lists it.
    texts = [text if isinstance(text, str) else None for text in table["transcript"]]
    return pd.DataFrame({"id": pd.Series(ids, dtype=str), "transcript": texts, "split": pd.Series(splits, dtype=str)})


def _read_table(path: str) -> pd.DataFrame:
    """A table of parquet or, if it is not named so and does not begin so, delimited text, whatever it is named."""
    try:
        with epath.Path(path).open("rb") as file:
            if path.lower().endswith(".parquet") or file.read(len(_PARQUET)) == _PARQUET:
                return read_parquet(file, _TRANSCRIPT_COLUMNS, ["id"])
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable .parquet or .csv file ({reason}).") from error
    rows = read_delimited(path, _TRANSCRIPT_COLUMNS)
    return pd.DataFrame(rows, columns=_TRANSCRIPT_COLUMNS, dtype=object)


def _write_tables(
    output: epath.Path, notes: Sequence[dict], skipped: Sequence[dict[str, str]], transcripts: pd.DataFrame | None
) -> None:
    """Writes the list of what was skipped and both tables. Raises InputError if there is nothing for the latter."""
    write_skipped(output, skipped)
    if not notes:
        first = skipped[0]["reason"]
        raise InputError(f"{output}: none of the {len(skipped)} recordings gave a clip, the first: {first}")
    clips = pd.DataFrame(notes).rename(columns={"path": "source"})
    write_parquet(output / "mouths.parquet", clips[["id", "shard", "source", "frames", "samples", "found"]])
    where = f", see {output / SKIPPED_FILE}" if skipped else ""
    log.info("%s: %d clips, %d skipped%s", output, len(clips), len(skipped), where)
    if long := int((clips["frames"] > MAX_FRAMES).sum()):
        seconds = MAX_FRAMES // FRAME_RATE
        log.info("%d clips have more than %d frames (%d s), manifest leaves them out", long, MAX_FRAMES, seconds)
    if transcripts is None:
        return
    keys = [name for name in ("id", "shard") if name in transcripts]
    metadata = clips.merge(transcripts, on=keys).rename(
        columns={"frames": "video_num_frames", "samples": "audio_num_frames"}
    )
    if metadata.empty:
        raise InputError(
            f"{output}: no clip has a transcript, expected ids like {clips['id'].iloc[0]!r} in --transcripts."
        )
    metadata = metadata.assign(fps=FRAME_RATE, sampling_rate=SAMPLE_RATE)
    write_parquet(output / "metadata.parquet", metadata[list(COLUMNS)])
    without = len(clips) - len(metadata), len(transcripts) - len(metadata)
    log.info("%d clips have a transcript, %d have none, %d transcripts have no clip", len(metadata), *without)
