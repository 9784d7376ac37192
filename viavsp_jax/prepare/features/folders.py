"""The dataset folders that the shards stage writes, one for each kind of record, modality and condition.

Beside the shards (see viavsp_jax/data/records.py) lie, in manifest order, `{split}.tsv`, `{split}.wrd` and a file for
each field of cluster counts; `skipped.jsonl`; and `notes/`, from which these are made when all shards of a split are
there.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence

import numpy as np
from etils import epath

from viavsp_jax.data import records
from viavsp_jax.data.examples import FEATURES, MEDIA, MODALITIES, Example, Kind
from viavsp_jax.prepare.corpus.entries import condition_of
from viavsp_jax.prepare.features.extract import Encoded
from viavsp_jax.prepare.features.reading import Media
from viavsp_jax.prepare.lines import read_lines, write_lines
from viavsp_jax.prepare.manifest_files import Clip
from viavsp_jax.prepare.skipped import SKIPPED_FILE, write_skipped
from viavsp_jax.runtime.errors import InputError

CLIPS_PER_SHARD = 10_000

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard of one split, and which clips of the manifest it holds."""

    split: str
    listed: str  # the split's name in the manifest, where that of a test set may tell a condition
    index: int
    num_shards: int
    positions: range

    def __str__(self) -> str:
        return f"{self.listed} {self.index + 1}/{self.num_shards}"


def cut_into_shards(listed: str, num_clips: int, num_shards: int | None) -> list[Shard]:
    """Cuts a split of the manifest into shards of neighbouring clips, as equal as can be."""
    num_shards = min(num_shards or -(-num_clips // CLIPS_PER_SHARD), num_clips)
    ends = [index * num_clips // num_shards for index in range(num_shards + 1)]
    split, _ = condition_of(listed)
    return [Shard(split, listed, i, num_shards, range(ends[i], ends[i + 1])) for i in range(num_shards)]


def chosen_shards(shards: dict[str, list[Shard]], index: int | None) -> list[Shard]:
    """All of them, or those with an index. Raises InputError if no split has so many."""
    most = max(map(len, shards.values()))
    if index is not None and not 0 <= index < most:
        raise InputError(f"--shard_index is {index}, expected 0 to {most - 1}.")
    return [shard for group in shards.values() for shard in group if index in (None, shard.index)]


@dataclasses.dataclass(frozen=True)
class Folder:
    """One dataset folder: features of a modality or, without one, media with the counts of all."""

    path: epath.Path
    modality: str | None

    @property
    def kind(self) -> Kind:
        return FEATURES if self.modality else MEDIA

    @property
    def modalities(self) -> Sequence[str]:
        """What the encoder has to be run on."""
        return (self.modality,) if self.modality else MODALITIES

    def shard_path(self, shard: Shard) -> epath.Path:
        return records.shard_path(self.path, shard.split, shard.index, shard.num_shards, self.kind)

    def notes_path(self, shard: Shard) -> epath.Path:
        """A line for each clip: its cluster counts, or why it was skipped."""
        return self.path / "notes" / f"{shard.split}-{shard.index:05d}-of-{shard.num_shards:05d}.jsonl"

    def example(self, clip: Clip, media: Media, outputs: dict[str, Encoded], counts: dict[str, np.ndarray]) -> Example:
        """The record of a clip, from the encoder's outputs and the cluster counts by modality."""
        if self.modality:
            content = {"features": outputs[self.modality].final.astype(np.float16)}
        else:
            content = {"video": media.video, "audio": media.samples}
        return {
            "id": clip.id,
            "transcript": clip.transcript,
            "source_language": clip.source_language,
            "target_language": clip.target_language,
            **dict(zip(self.kind.counts, (counts[modality] for modality in self.modalities), strict=True)),
            **content,
        }

    def finish(self, shards: Sequence[Shard], manifest: epath.Path, width: int) -> None:
        """Writes what can be written only when all shards of a split are there: its lists and the metadata."""
        split, listed = shards[0].split, shards[0].listed
        there = records.complete_splits(self.path, self.kind)
        if split not in there:
            log.info("%s: split %s: other shards are still missing", self.path, split)
            return
        notes = [note for shard in shards for note in _read_notes(self.notes_path(shard))]
        kept = [note for note in notes if "reason" not in note]
        root, *clips = read_lines(manifest / f"{listed}.tsv")
        transcripts = read_lines(manifest / f"{listed}.wrd")
        write_lines(self.path / f"{split}.tsv", [root, *(clips[note["position"]] for note in kept)])
        write_lines(self.path / f"{split}.wrd", [transcripts[note["position"]] for note in kept])
        for name in self.kind.counts:
            write_lines(self.path / f"{split}.{name}", [" ".join(map(str, note[name])) for note in kept])
        # Another process may be finishing another split right now: repeat until nothing is new.
        while True:
            self._write_skipped()
            records.write_metadata(self.path, width if self.modality else None, there, self.kind)
            if (now := records.complete_splits(self.path, self.kind)) == there:
                break
            there = now
        skipped = len(notes) - len(kept)
        where = f", see {self.path / SKIPPED_FILE}" if skipped else ""
        log.info("%s: split %s: %d clips, %d skipped%s", self.path, split, len(kept), skipped, where)

    def _write_skipped(self) -> None:
        """Writes skipped.jsonl (split, id, reason) from the notes of all shards that are there."""
        skipped = [
            {"split": path.name.rsplit("-", 3)[0], "id": note["id"], "reason": note["reason"]}
            for path in sorted((self.path / "notes").glob("*.jsonl"))
            for note in _read_notes(path)
            if "reason" in note
        ]
        write_skipped(self.path, skipped)


def _read_notes(path: epath.Path) -> list[dict]:
    try:
        return [json.loads(line) for line in read_lines(path)]
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: the notes of a shard are damaged ({error}), expected to write it again: delete both."
        ) from error


def missing(folders: Sequence[Folder], shard: Shard) -> list[Folder]:
    """The folders that do not have the shard."""
    return [folder for folder in folders if not folder.shard_path(shard).exists()]
