"""Stage 3: runs every clip through the encoder once and writes ArrayRecord shards (see prepare/features/folders.py).

Features, which training reads with a frozen encoder: for each modality a dataset folder `<modality>_<condition>`, as
av_clean, audio_clean, video_clean, audio_babble_0db, av_wild, av_lost25, …. The counts of a modality come from that
modality's own encoder pass: when only audio can be heard, nothing else is known to cluster by. Without K-Means centres
every frame is a run of its own, which provenance.json tells.

Media, which training reads when it runs the encoder: a folder `media_<condition>` with the clips themselves and the
counts of all three modalities.

A shard appears when it is complete; a run that was stopped goes on with the shards that are missing, and several
processes may each write some (--shard_index, or --process with JAX). Whoever finishes a split writes its metadata and
lists. Clips that cannot be read are left out and listed in skipped.jsonl.
"""

import argparse
import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from etils import epath
from tqdm import tqdm

from viavsp_jax import encoder_folder
from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.data.ids import id_text
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare import cluster
from viavsp_jax.prepare.corpus.entries import condition_of
from viavsp_jax.prepare.features import extract, provenance
from viavsp_jax.prepare.features.condition import Condition
from viavsp_jax.prepare.features.folders import CLIPS_PER_SHARD, Folder, Shard, chosen_shards, cut_into_shards, missing
from viavsp_jax.prepare.features.reading import Reader
from viavsp_jax.prepare.features.writing import Task, Writer
from viavsp_jax.prepare.kmeans import load_centers
from viavsp_jax.prepare.manifest_files import Clip, read_manifest, splits_of
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.options import new_folder, whole

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the stage."""
    extract.add_arguments(parser)
    parser.add_argument(
        "--kmeans",
        help="file that the kmeans stage wrote (default: none, for trainings with config.data.compression=pool:K)",
    )
    parser.add_argument(
        "--output", type=new_folder("--output"), required=True, help="folder that holds the dataset folders"
    )
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="splits to write (default: all in the manifest)")
    parser.add_argument(
        "--kind",
        choices=["features", "media", "both"],
        default="features",
        help="features: of a frozen encoder; media: the clips, to train the encoder, too (default features)",
    )
    parser.add_argument(
        "--modalities",
        nargs="+",
        choices=MODALITIES,
        default=["av"],
        metavar="MODALITY",
        help="a dataset of features for each: av (audio and video), audio, video (default av)",
    )
    parser.add_argument(
        "--num_shards",
        type=whole("--num_shards", 1),
        help=f"shards of each split, at most one a clip (default: one for each {CLIPS_PER_SHARD:,} clips)",
    )
    parser.add_argument(
        "--shard_index", type=whole("--shard_index", 0), help="write only this shard, from 0 (default: all)"
    )
    Condition.add_arguments(parser)
    cluster.add_arguments(
        parser,
        local="this process",
        ray="worker processes that write a shard each, on all machines of a Ray cluster, each with --workers cores "
        "and, unless --device is cpu, a GPU if there is one",
    )
    parser.add_argument(
        "--ray_workers", type=whole("--ray_workers", 1), help="workers at most (default: as many as there is room for)"
    )
    # The hosts of a TPU slice find each other without these.
    parser.add_argument("--coordinator", help="several processes with jax: host:port of the first, the same for all")
    parser.add_argument(
        "--processes", type=whole("--processes", 1), help="several processes with jax: how many there are"
    )
    parser.add_argument(
        "--process", type=whole("--process", 0), help="several processes with jax: which one this is, from 0"
    )


def run(args: argparse.Namespace) -> None:
    """Writes the shards that are missing. Raises InputError if an input or an option is not usable."""
    _check_options(args)
    condition = Condition.of(args)
    manifest = epath.Path(args.manifest)
    clips = _read_manifests(manifest, args.split)
    shards = {split: cut_into_shards(split, len(clips[split]), args.num_shards) for split in clips}
    process, processes = _join_processes(args)
    chosen = chosen_shards(shards, args.shard_index)[process::processes]
    config = encoder_folder.read_config(args.encoder)
    centers, layer = _load_centers(args, config)
    folders = {split: _folders(args, condition.name_of(condition_of(split)[1])) for split in clips}
    make_writer = functools.partial(Writer, args, centers, layer)
    writer = make_writer() if args.runner == "local" else None  # an encoder that is not usable is known by now
    _check_provenance(args, condition, folders, layer, clips, shards)

    def finish(*splits: str) -> None:
        for split in splits:
            for folder in folders[split]:
                folder.finish(shards[split], manifest, config.embed_dim)

    todo = [shard for shard in chosen if missing(folders[shard.listed], shard)]
    tasks = functools.partial(_tasks, clips=clips, folders=folders, condition=condition)
    splits = dict.fromkeys(shard.listed for shard in chosen)
    if args.runner == "ray":
        failed = _write_on_cluster(args, make_writer, todo, tasks(todo)) if todo else {}
        finish(*splits)
        if failed:
            shard, reason = next(iter(failed.items()))
            raise InputError(
                f"{len(failed)} of {len(todo)} shards could not be written, the first is {shard}: {reason}"
            )
        return
    with Reader(args.workers) as reader:
        for split in splits:
            for task in tasks(shard for shard in todo if shard.listed == split):
                writer.write(task, reader, show_progress=True)
            finish(split)
    if processes > 1:
        _wait_for_others(folders, shards)


def _check_options(args: argparse.Namespace) -> None:
    if args.backend == "torch" and (args.coordinator, args.processes, args.process) != (None, None, None):
        raise InputError("--coordinator, --processes and --process go with --backend jax, with torch: --shard_index.")
    if args.runner == "ray" and args.backend == "jax":
        raise InputError("--runner ray goes with --backend torch, with jax the hosts of a slice share the shards.")
    if args.runner == "local" and (args.ray_address, args.ray_workers) != (None, None):
        raise InputError("--ray_address and --ray_workers go with --runner ray.")


def _join_processes(args: argparse.Namespace) -> tuple[int, int]:
    """(which process this is, how many there are); each encodes on its own devices."""
    if args.backend == "torch":
        return 0, 1
    # Imported here because with PyTorch there is no use for JAX, which would take the devices.
    import jax

    from viavsp_jax.runtime import distributed

    distributed.initialize(args.coordinator, args.processes, args.process)
    if jax.process_count() > 1 and args.shard_index is not None:
        raise InputError(f"--shard_index is {args.shard_index}, but {jax.process_count()} processes share all shards.")
    return jax.process_index(), jax.process_count()


def _read_manifests(manifest: epath.Path, splits: Sequence[str] | None) -> dict[str, list[Clip]]:
    splits = splits or splits_of(manifest)
    if not splits:
        raise InputError(f"{manifest}: has no {{split}}.tsv, expected what the manifest stage wrote.")
    return {split: read_manifest(manifest, split) for split in splits}


def _load_centers(args: argparse.Namespace, config: AVHubertConfig) -> tuple[np.ndarray | None, int | None]:
    """The centres and their layer; (None, None) where none are given."""
    if not args.kmeans:
        log.info("without --kmeans every frame is a run of its own: train with config.data.compression=pool:K")
        return None, None
    centers, layer = load_centers(args.kmeans)
    if centers.shape[1] != config.embed_dim or not 0 <= layer <= config.num_layers:
        raise InputError(
            f"{args.kmeans}: has centres of layer {layer}, width {centers.shape[1]}, expected a layer up to "
            f"{config.num_layers} and width {config.embed_dim}, as {args.encoder} has."
        )
    return centers, layer


def _folders(args: argparse.Namespace, condition: str) -> list[Folder]:
    output = epath.Path(args.output)
    modalities = {"features": args.modalities, "media": [None], "both": [*args.modalities, None]}[args.kind]
    # What another system wrote may have its name in another Unicode form.
    there = {id_text(path.name): path for path in output.iterdir()} if output.is_dir() else {}
    names = [f"{modality or 'media'}_{condition}" for modality in modalities]
    return [Folder(there.get(name, output / name), x) for name, x in zip(names, modalities, strict=True)]


def _check_provenance(
    args: argparse.Namespace,
    condition: Condition,
    folders: dict[str, list[Folder]],
    layer: int | None,
    clips: dict[str, list[Clip]],
    shards: dict[str, list[Shard]],
) -> None:
    """Raises InputError if a folder holds shards that were made from other inputs or by other settings."""
    manifest = epath.Path(args.manifest)
    settings = {
        "encoder": provenance.encoder_hash(args.encoder),
        "backend": args.backend,
        "dtype": args.dtype,
        "kmeans": provenance.sha256(epath.Path(args.kmeans)) if args.kmeans else None,
        "layer": layer,
    } | condition.record()
    made_from = {
        split: {
            "manifest": provenance.sha256(manifest / f"{split}.tsv", manifest / f"{split}.wrd"),
            "num_shards": len(shards[split]),
            "longest_clip": max(clip.num_frames for clip in clips[split]) + 2 * condition.pause,
        }
        for split in shards
    }
    paths = {"encoder": args.encoder} | ({"kmeans": args.kmeans} if args.kmeans else {})
    for folder in dict.fromkeys(folder for group in folders.values() for folder in group):
        splits = {condition_of(split)[0]: made_from[split] for split in shards if folder in folders[split]}
        own = {"schema": folder.kind.version, "modality": folder.modality}
        provenance.check(folder.path, settings | own, splits, paths)


def _tasks(
    shards: Iterable[Shard], clips: dict[str, list[Clip]], folders: dict[str, list[Folder]], condition: Condition
) -> Iterator[Task]:
    for shard in shards:
        listed = clips[shard.listed]
        here = [listed[position] for position in shard.positions]
        yield Task(shard, folders[shard.listed], here, condition.changes(here, listed))


def _write_on_cluster(
    args: argparse.Namespace, make_writer: Callable[[], Writer], todo: Sequence[Shard], tasks: Iterable[Task]
) -> dict[Shard, InputError]:
    """Writes shards on the machines of a cluster; returns those that could not be written, each with the reason."""
    failed = {}
    results = cluster.map_unordered(
        make_writer,
        tasks,
        address=args.ray_address or "local",
        max_workers=args.ray_workers,
        cpus=max(1, args.workers),
        gpu=args.device != "cpu",
    )
    total = sum(len(shard.positions) for shard in todo)
    with contextlib.closing(results), tqdm(total=total, desc=f"{len(todo)} shards", unit="clip") as bar:
        for task, error in results:
            bar.update(len(task.clips))
            if error:
                failed[task.shard] = error
                bar.write(f"{task.shard}: {error}", file=sys.stderr)
    return failed


def _wait_for_others(folders: dict[str, list[Folder]], shards: dict[str, list[Shard]]) -> None:
    """Until all shards are there: a process that ends long before the others looks to JAX as if it had failed."""
    missing = [
        folder.shard_path(shard) for split, group in shards.items() for folder in folders[split] for shard in group
    ]
    while missing := [path for path in missing if not path.exists()]:
        log.info("waiting for %d shards of other processes, the first: %s", len(missing), missing[0])
        time.sleep(5)
