"""Writes shards one by one, in whatever process has the encoder: this one, or a worker of a cluster."""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from viavsp_jax.data import records
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.prepare.features import extract
from viavsp_jax.prepare.features.folders import Folder, Shard, missing
from viavsp_jax.prepare.features.reading import Changes, Reader
from viavsp_jax.prepare.kmeans import assign, run_lengths
from viavsp_jax.prepare.lines import write_lines
from viavsp_jax.prepare.manifest_files import Clip
from viavsp_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to write and where, its clips, and what is done to them."""

    shard: Shard
    folders: Sequence[Folder]
    clips: Sequence[Clip]
    changes: Changes


class Writer:
    """Holds what all shards need: the encoder and, if frames are to be clustered, centres of one of its layers."""

    def __init__(self, args: argparse.Namespace, centers: np.ndarray | None, layer: int | None):
        """Loads the encoder. Raises InputError if it or the device is not usable."""
        self._encoder = extract.load_encoder(args)
        self._batch_size, self._workers = args.batch_size, args.workers
        self._centers, self._layer = centers, layer

    def __call__(self, task: Task) -> None:
        """As `write`. The readers are new ones each time: they may have died of the shard before."""
        with Reader(self._workers) as reader:
            self.write(task, reader)

    def write(self, task: Task, reader: Reader, show_progress: bool = False) -> None:
        """Writes the shard in those folders where it is missing. Raises InputError if none of its clips is readable."""
        todo = missing(task.folders, task.shard)
        if not todo:
            return
        needed = {modality for folder in todo for modality in folder.modalities}
        modalities = [modality for modality in MODALITIES if modality in needed]
        outputs = extract.encode_clips(
            self._encoder, task.clips, modalities, self._layer, self._batch_size, reader, task.changes
        )
        with tqdm(outputs, desc=str(task.shard), total=len(task.clips), unit="clip", disable=not show_progress) as bar:
            _write_shard(todo, task, self._centers, bar)


def _counts(encoded: extract.Encoded, centers: np.ndarray | None) -> np.ndarray:
    """The lengths of the runs of one cluster, float32[K, D]; without clusters each frame is a run of its own."""
    if centers is None:
        return np.ones(len(encoded.final), np.int32)
    return run_lengths(assign(encoded.layer, centers))


def _write_shard(
    folders: Sequence[Folder], task: Task, centers: np.ndarray | None, outputs: Iterable[extract.EncodedClip]
) -> None:
    """Writes one shard in each folder, and before it gets its name its notes.

    Records lie in the order of encoding, by length: so a shard is never held in memory.

    Raises InputError if none of the clips could be read; then there is no shard.
    """
    shard, clips = task.shard, task.clips
    notes = [[{} for _ in clips] for _ in folders]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(records.ShardWriter(folder.shard_path(shard), folder.kind)) for folder in folders
        ]
        for offset, encoded in outputs:
            clip, known = clips[offset], {"position": shard.positions[offset], "id": clips[offset].id}
            if isinstance(encoded, str):
                for lines in notes:
                    lines[offset] = known | {"reason": encoded}
                continue
            media, arrays = encoded
            counts = {modality: _counts(one, centers) for modality, one in arrays.items()}
            for folder, writer, lines in zip(folders, writers, notes, strict=True):
                example = folder.example(clip, media, arrays, counts)
                writer.write(example)
                lines[offset] = known | {name: example[name].tolist() for name in folder.kind.counts}
        for folder, writer, lines in zip(folders, writers, notes, strict=True):
            if not writer.num_records:
                raise InputError(
                    f"{folder.shard_path(shard)}: none of its {len(clips)} clips could be read, "
                    f"the first: {lines[0]['reason']}"
                )
            write_lines(folder.notes_path(shard), [json.dumps(line, ensure_ascii=False) for line in lines])
