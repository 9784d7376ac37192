"""Stage 3: encoder features and cluster counts of every clip, as ArrayRecord shards.

For each modality a dataset folder `<modality>_<condition>`: av_clean, audio_clean, video_clean,
audio_babble_0db, … (see viavsp_jax/data/records.py), with `{split}.tsv`, `{split}.wrd` and
`{split}.cluster_counts` in manifest order. The counts of a modality come from that modality's own encoder
pass: when only audio can be heard, nothing else is known to cluster by.

A shard appears when it is complete; a run that was stopped goes on with the shards that are missing, and
several processes may each write some (--shard_index). Whoever finishes a split writes its metadata and lists.
Clips that cannot be read are left out and listed in skipped.jsonl.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from etils import epath
from tqdm import tqdm

from viavsp_jax.data import records
from viavsp_jax.errors import InputError
from viavsp_jax.prepare import extract, provenance
from viavsp_jax.prepare.avhubert_torch import CONFIG_FILE, WEIGHTS_FILE, AVHubert
from viavsp_jax.prepare.kmeans import assign, load_centers, run_lengths
from viavsp_jax.prepare.manifest import SPLITS, Clip, read_lines, read_manifest, write_lines

_CLIPS_PER_SHARD = 10_000
SKIPPED_FILE = "skipped.jsonl"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the stage."""
    extract.add_arguments(parser)
    parser.add_argument("--kmeans", required=True, help="file that the kmeans stage wrote")
    parser.add_argument("--output", required=True, help="folder that holds the dataset folders")
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="splits to write (default: all in the manifest)")
    parser.add_argument(
        "--modalities",
        nargs="+",
        choices=extract.MODALITIES,
        default=["av"],
        metavar="MODALITY",
        help="one dataset for each: av (audio and video), audio, video (default av)",
    )
    parser.add_argument(
        "--num_shards",
        type=int,
        help=f"shards of each split, at most one a clip (default: one for each {_CLIPS_PER_SHARD:,} clips)",
    )
    parser.add_argument("--shard_index", type=int, help="write only this shard, from 0 (default: all)")
    parser.add_argument("--noise", choices=["babble"], help="add other clips of the split to the audio")
    parser.add_argument("--snr", type=float, metavar="DB", help="signal-to-noise ratio in dB, with --noise")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard of one split: which clips of the manifest it holds, and where it lies in a dataset folder."""

    split: str
    index: int
    num_shards: int
    positions: range

    def path(self, folder: epath.Path) -> epath.Path:
        return records.shard_path(folder, self.split, self.index, self.num_shards)

    def notes(self, folder: epath.Path) -> epath.Path:
        """A line for each clip: its cluster counts, or why it was skipped; the lists are made from these."""
        return folder / "notes" / f"{self.split}-{self.index:05d}-of-{self.num_shards:05d}.jsonl"


def run(args: argparse.Namespace) -> None:
    """Writes the shards that are missing. Raises InputError if an input or an option is not usable."""
    _check_options(args)
    manifest = epath.Path(args.manifest)
    clips = _read_manifests(manifest, args.split)
    shards = {split: _shards(split, len(clips[split]), args.num_shards) for split in clips}
    chosen = _chosen_shards(shards, args.shard_index)
    centers, layer = load_centers(args.kmeans)
    model = extract.load_model(args)
    _check_encoder(args, model, centers, layer)
    condition = f"{args.noise}_{args.snr:g}db" if args.noise else "clean"
    folders = {name: epath.Path(args.output) / f"{name}_{condition}" for name in args.modalities}
    _check_provenance(args, folders, layer, shards)

    centers = torch.from_numpy(centers).double().to(next(model.parameters()).device)
    for split, group in itertools.groupby(chosen, key=lambda shard: shard.split):
        babble = extract.Babble(clips[split], args.snr, args.seed) if args.noise else None
        for shard in group:
            todo = {name: folder for name, folder in folders.items() if not shard.path(folder).exists()}
            if not todo:
                continue
            here = [clips[split][position] for position in shard.positions]
            title = f"{split} {shard.index + 1}/{shard.num_shards}"
            outputs = extract.encode_clips(model, here, list(todo), layer, args.batch_size, args.workers, babble)
            _write_shard(todo, shard, here, centers, tqdm(outputs, desc=title, total=len(here), unit="clip"))
        for folder in folders.values():
            _finish(folder, shards[split], manifest, model.config.embed_dim)


def _check_options(args: argparse.Namespace) -> None:
    if (args.noise is None) != (args.snr is None):
        raise InputError("--noise and --snr go together: give both, or neither for clean audio.")
    if args.noise and "video" in args.modalities:
        raise InputError("--noise does not change video features, leave video out of --modalities.")
    if args.num_shards is not None and args.num_shards < 1:
        raise InputError(f"--num_shards is {args.num_shards}, expected at least 1.")


def _read_manifests(manifest: epath.Path, splits: Sequence[str] | None) -> dict[str, list[Clip]]:
    splits = splits or [split for split in SPLITS if (manifest / f"{split}.tsv").exists()]
    if not splits:
        raise InputError(f"{manifest}: has no {{split}}.tsv, expected what the manifest stage wrote.")
    return {split: read_manifest(manifest, split) for split in splits}


def _shards(split: str, num_clips: int, num_shards: int | None) -> list[Shard]:
    """Cuts a split into shards of neighbouring clips, as equal as can be."""
    num_shards = min(num_shards or -(-num_clips // _CLIPS_PER_SHARD), num_clips)
    ends = [index * num_clips // num_shards for index in range(num_shards + 1)]
    return [Shard(split, i, num_shards, range(ends[i], ends[i + 1])) for i in range(num_shards)]


def _chosen_shards(shards: dict[str, list[Shard]], index: int | None) -> list[Shard]:
    most = max(map(len, shards.values()))
    if index is not None and not 0 <= index < most:
        raise InputError(f"--shard_index is {index}, expected 0 to {most - 1}.")
    return [shard for group in shards.values() for shard in group if index in (None, shard.index)]


def _check_encoder(args: argparse.Namespace, model: AVHubert, centers: np.ndarray, layer: int) -> None:
    if centers.shape[1] != model.config.embed_dim or not 0 <= layer <= model.config.num_layers:
        raise InputError(
            f"{args.kmeans}: has centres of layer {layer}, width {centers.shape[1]}, expected a layer up to "
            f"{model.config.num_layers} and width {model.config.embed_dim}, as {args.encoder} has."
        )


def _check_provenance(
    args: argparse.Namespace, folders: dict[str, epath.Path], layer: int, shards: dict[str, list[Shard]]
) -> None:
    """Raises InputError if a folder holds shards that were made from other inputs or by other settings."""
    encoder, manifest = epath.Path(args.encoder), epath.Path(args.manifest)
    settings = {
        "schema": records.SCHEMA_VERSION,
        "encoder": provenance.sha256(encoder / CONFIG_FILE, encoder / WEIGHTS_FILE),
        "dtype": args.dtype,
        "kmeans": provenance.sha256(epath.Path(args.kmeans)),
        "layer": layer,
        "noise": {"kind": args.noise, "snr_db": args.snr, "seed": args.seed} if args.noise else None,
    }
    splits = {
        split: {
            "manifest": provenance.sha256(manifest / f"{split}.tsv", manifest / f"{split}.wrd"),
            "num_shards": len(shards[split]),
        }
        for split in shards
    }
    for modality, folder in folders.items():
        provenance.check(folder, settings | {"modality": modality}, splits)


def _write_shard(
    folders: dict[str, epath.Path],
    shard: Shard,
    clips: Sequence[Clip],
    centers: torch.Tensor,
    outputs: Iterable[tuple[int, dict[str, extract.Encoded] | str]],
) -> None:
    """Writes one shard in each modality, and before it gets its name its notes.

    Records lie in the order of encoding, by length: so a shard is never held in memory.

    Raises InputError if none of the clips could be read; then there is no shard.
    """
    notes = {modality: [{} for _ in clips] for modality in folders}
    with contextlib.ExitStack() as stack:
        writers = {
            modality: stack.enter_context(records.ShardWriter(shard.path(folder)))
            for modality, folder in folders.items()
        }
        for offset, encoded in outputs:
            clip = clips[offset]
            for modality, writer in writers.items():
                note = notes[modality][offset]
                note |= {"position": shard.positions[offset], "id": clip.id}
                if isinstance(encoded, str):
                    note["reason"] = encoded
                    continue
                example = _example(clip, encoded[modality], centers)
                writer.write(example)
                note["cluster_counts"] = example["cluster_counts"].tolist()
        for modality, folder in folders.items():
            if not writers[modality].num_records:
                raise InputError(
                    f"{shard.path(folder)}: none of its {len(clips)} clips could be read, "
                    f"the first: {notes[modality][0]['reason']}"
                )
            lines = [json.dumps(note, ensure_ascii=False) for note in notes[modality]]
            write_lines(shard.notes(folder), lines)


def _example(clip: Clip, encoded: extract.Encoded, centers: torch.Tensor) -> records.Example:
    return {
        "id": clip.id,
        "features": encoded.final.to(torch.float16).cpu().numpy(),
        "cluster_counts": run_lengths(assign(encoded.layer, centers).cpu().numpy()),
        "transcript": clip.transcript,
        "source_language": clip.source_language,
        "target_language": clip.target_language,
    }


def _finish(folder: epath.Path, shards: Sequence[Shard], manifest: epath.Path, width: int) -> None:
    """Writes what can be written only when all shards of a split are there: its lists and the metadata."""
    split, there = shards[0].split, records.complete_splits(folder)
    if split not in there:
        log.info("%s: split %s: other shards are still missing", folder, split)
        return
    notes = [json.loads(line) for shard in shards for line in read_lines(shard.notes(folder))]
    kept = [note for note in notes if "reason" not in note]
    root, *clips = read_lines(manifest / f"{split}.tsv")
    transcripts = read_lines(manifest / f"{split}.wrd")
    write_lines(folder / f"{split}.tsv", [root, *(clips[note["position"]] for note in kept)])
    write_lines(folder / f"{split}.wrd", [transcripts[note["position"]] for note in kept])
    counts = [" ".join(map(str, note["cluster_counts"])) for note in kept]
    write_lines(folder / f"{split}.cluster_counts", counts)
    # Another process may be finishing another split right now: repeat until nothing is new.
    while True:
        _write_skipped(folder)
        records.write_metadata(folder, width, there)
        if (now := records.complete_splits(folder)) == there:
            break
        there = now
    skipped = len(notes) - len(kept)
    where = f", see {folder / SKIPPED_FILE}" if skipped else ""
    log.info("%s: split %s: %d clips, %d skipped%s", folder, split, len(kept), skipped, where)


def _write_skipped(folder: epath.Path) -> None:
    """Writes skipped.jsonl (split, id, reason) from the notes of all shards that are there."""
    skipped = []
    for path in sorted((folder / "notes").glob("*.jsonl")):
        split = path.name.rsplit("-", 3)[0]
        for note in map(json.loads, read_lines(path)):
            if "reason" in note:
                skipped.append({"split": split, "id": note["id"], "reason": note["reason"]})
    if skipped:
        write_lines(folder / SKIPPED_FILE, [json.dumps(line, ensure_ascii=False) for line in skipped])
