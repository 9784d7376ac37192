"""How long the clips of a corpus are that does not say so: looked up in their files, without decoding them.

Each batch of clips is kept in a file, so that a run that was stopped goes on where it was, and one with more clips
looks at those alone.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed

from etils import epath
from tqdm import tqdm

from viavsp_jax.data import addresses, media
from viavsp_jax.data.features import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from viavsp_jax.prepare.corpus.entries import Entry, Sizes
from viavsp_jax.prepare.lines import read_lines, write_lines
from viavsp_jax.prepare.recordings.probe import probe
from viavsp_jax.prepare.workers import WorkerDied, Workers
from viavsp_jax.runtime.errors import InputError

NOT_A_MOUTH = "not a mouth crop"

_BATCH = 256  # clips
_LATE = 0.2  # seconds, more than decoders and rounding make of a start
_PATIENCE = 600  # seconds for a batch, of a slow disk too

Found = Sizes | str  # or why there is none, as `kind: detail`


def measure(root: str, entries: Sequence[Entry], kept: epath.Path, workers: int) -> list[Found]:
    """The sizes of clips whose media are below `root`; what was found out before is in the folder `kept`."""
    places = [(os.path.join(root, one.video), os.path.join(root, one.audio)) for one in entries]
    batches = [places[start : start + _BATCH] for start in range(0, len(places), _BATCH)]
    files = [kept / f"{_key(batch)}.jsonl" for batch in batches]
    found = [_read(file, len(batch)) for file, batch in zip(files, batches, strict=True)]
    missing = [number for number, known in enumerate(found) if known is None]
    with tqdm(total=len(places), desc="lengths", unit="clip", disable=not missing) as bar:
        bar.update(sum(map(len, filter(None, found))))
        for number, sizes in _measured([batches[number] for number in missing], workers):
            number = missing[number]
            found[number] = sizes
            write_lines(files[number], (json.dumps(one, ensure_ascii=False) for one in sizes))
            bar.update(len(sizes))
    return [Sizes(*one) if isinstance(one, list) else one for sizes in found for one in sizes]


def _measured(batches: Sequence[Sequence[tuple[str, str]]], workers: int) -> Iterator[tuple[int, list]]:
    """(number of the batch, sizes) as they are done."""
    if not workers:
        yield from ((number, _of_batch(batch)) for number, batch in enumerate(batches))
        return

    def done(batch: Sequence[tuple[str, str]]) -> list:
        with contextlib.suppress(WorkerDied):
            return pool.do(_of_batch, batch)
        sizes = []
        for place in batch:  # to find the one of which it died
            try:
                sizes += pool.do(_of_batch, [place])
            except WorkerDied as death:
                sizes.append(f"unreadable: {place[0]}: the process that looked at it died ({death})")
        return sizes

    with Workers(min(workers, len(batches)), _PATIENCE) as pool:
        tasks = {pool.submit(done, batch): number for number, batch in enumerate(batches)}
        for task in as_completed(tasks):
            yield tasks[task], task.result()


def _of_batch(batch: Sequence[tuple[str, str]]) -> list[list[int] | str]:
    return [_of_clip(*place) for place in batch]


def _of_clip(video: str, audio: str) -> list[int] | str:
    for address in (video, audio):
        if not addresses.exists(address):
            return f"missing file: {address}"
    try:
        known = probe(video)
        if known.pictures and (size := (known.pictures.width, known.pictures.height)) != (FRAME_SIZE, FRAME_SIZE):
            return f"{NOT_A_MOUTH}: {video} is {size[0]}x{size[1]}, expected {FRAME_SIZE}x{FRAME_SIZE}"
        media.check_video(video)
        heard = known.sound if audio == video else probe(audio).sound
    except InputError as error:
        return f"unreadable: {error}"
    if heard is None:
        return f"no sound: {audio}"
    pictures, ahead = known.pictures, 0.0
    if audio == video:  # before the first picture, that one is shown
        ahead = float(max(0, pictures.start - heard.start))
    elif pictures.start > _LATE:
        return (
            f"unclear start: the pictures of {video} begin at {float(pictures.start):.2f} s, their sound is elsewhere"
        )
    as_it_is = pictures.at_25 and ahead < _LATE
    frames = pictures.count if as_it_is else round((ahead + pictures.seconds) * FRAME_RATE)
    return [frames, round(heard.seconds * SAMPLE_RATE)]


def _key(batch: Sequence[tuple[str, str]]) -> str:
    """Changes with what is asked for, and with the files on the disk."""
    stats = {path: _version(path) for place in batch for path in map(addresses.file_of, place)}
    return hashlib.sha256(json.dumps([batch, stats]).encode()).hexdigest()[:32]


def _version(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    return None


def _read(path: epath.Path, count: int) -> list | None:
    """What is kept of a batch; None if there is nothing, or it is damaged: then it is looked up again."""
    with contextlib.suppress(ValueError, RecursionError, InputError):
        sizes = [json.loads(line) for line in read_lines(path)] if path.exists() else []
        if len(sizes) == count and all(isinstance(one, str) or _is_sizes(one) for one in sizes):
            return sizes
    return None


def _is_sizes(one: object) -> bool:
    return isinstance(one, list) and len(one) == 2 and all(type(count) is int for count in one)
