"""The shard folders that names in a config stand for, and which of their records are used.

With a frozen encoder a name is that of a folder of features. Where the encoder is trained it is MODALITY_CONDITION: a
way to take the clips of `media_CONDITION`, and one that ends with _lostPERCENT takes them with so much of the video
lost (see viavsp_jax/data/lost.py). One that ends with _pool3 or the like is of the same records as without it, whose
frames become positions in another way (see viavsp_jax/data/compression.py). A name may have a path in front, of another
folder than `config.data.path`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from etils import epath

from viavsp_jax.data import lost, records
from viavsp_jax.data.compression import Compression, split_name
from viavsp_jax.data.examples import FEATURES, MEDIA, MODALITIES, PROVENANCE
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.runtime.errors import InputError

_WINDOW = 1_000  # records, so many times more than the rows of a batch

# The ids of records that are left out, by name in the config and split.
LeftOut = Mapping[tuple[str, str], frozenset[str]]


def modality_of(name: str) -> str:
    """How the clips of a name are taken; InputError if the name is none of clips."""
    modality, _, condition = os.path.basename(name).partition("_")
    if modality not in MODALITIES or not condition:
        raise InputError(f"{name!r} in the config names no clips, expected one of {MODALITIES}, _ and a condition")
    return modality


def folder_of(data: DataSettings, name: str) -> epath.Path:
    """Where the records of a name lie."""
    place, name = os.path.split(split_name(name)[0])
    folder = f"media_{lost.split_name(name)[0].partition('_')[2]}" if data.of_clips else name
    return (epath.Path(place) if "://" in place else epath.Path(data.path) / place) / folder


def open_sources(data: DataSettings, names: Sequence[str], split: str) -> list[records.SplitSource]:
    """One split of each of these.

    Raises InputError if a folder is not there, has no such split or no records in it, or does not fit the config.
    """
    if not data.path and any(not name.startswith("/") and "://" not in name for name in names):
        raise InputError("config.data.path is not set: expected the folder that holds the shard folders")
    kind, sources = MEDIA if data.of_clips else FEATURES, []
    for name in names:
        if data.of_clips:
            modality_of(name)
        for one in compressions_of(data, name):
            check_clusters(folder_of(data, name), one)
        source = records.open_split(folder_of(data, name), split, kind)
        if source.width not in (None, data.feature_width):
            raise InputError(
                f"{source.folder} holds features of width {source.width}, but config.data.feature_width is "
                f"{data.feature_width}"
            )
        sources.append(source)
    return sources


def compressions_of(data: DataSettings, name: str) -> tuple[Compression, ...]:
    """The ways in which the frames of a set's clips may become positions: its name's own, or those of the config."""
    own = split_name(name)[1]
    return (own,) if own else data.compression


def drawn(compressions: Sequence[Compression], rng: np.random.Generator) -> Compression:
    """One of them; where there is only one nothing is drawn."""
    return compressions[rng.integers(len(compressions)) if len(compressions) > 1 else 0]


def check_clusters(folder: epath.PathLike, compression: Compression) -> None:
    """InputError if frames are to be averaged by clusters, and a shard folder was written without K-Means centres."""
    path = epath.Path(folder) / PROVENANCE
    if not compression.by_clusters or not path.exists():
        return
    try:
        known = json.loads(path.read_bytes()).get("kmeans", "") is not None
    except (ValueError, AttributeError, RecursionError):  # who prepares, or transcribes, is told that it is damaged
        return
    if not known:
        raise InputError(
            f"{folder} was written without --kmeans, so its frames have no clusters, by which compression "
            f"{str(compression)!r} averages them: expected pool:K in config.data.compression, or in "
            "config.evaluate.decoding.compression where it is for decoding alone"
        )


def count_fields(data: DataSettings, name: str, split: str) -> list[str]:
    """The fields of a record by which its frames may be averaged: those of all that may be left of a clip."""
    if not data.of_clips:
        return list(FEATURES.counts)
    used, augment = {modality_of(name)}, data.augment
    if used == {"av"} and split == "train":
        used |= {"video"} if augment.drop_audio else set()
        used |= {"audio"} if augment.drop_video else set()
    return [f"cluster_counts_{modality}" for modality in MODALITIES if modality in used]


def records_of(source: records.SplitSource, name: str, left_out: LeftOut | None) -> grain.MapDataset:
    """The records of a source; in the place of one that is left out there is none, so that all others keep theirs."""
    dataset = grain.MapDataset.source(source)
    if (modality := os.path.basename(name).partition("_")[0]) in MODALITIES:
        dataset = dataset.map(lambda record: record | {"modality": MODALITIES.index(modality)})
    ids = (left_out or {}).get((name, source.split))
    return dataset.filter(lambda record: record["id"] not in ids) if ids else dataset


def endless(
    datasets: Sequence[grain.MapDataset],
    weights: Sequence[float],
    seed: int,
    load: Callable[[Any, int], Any] = lambda record, epoch: record,
) -> grain.MapDataset:
    """load(record, epoch) of records without end, in every epoch in another order.

    Without weights an epoch is all records of all datasets. With them each dataset has epochs of its own, and what is
    drawn next is of one or another in these proportions.
    """

    def repeated(part: grain.MapDataset) -> grain.MapDataset:
        size, shuffled = len(part), part.seed(seed).shuffle().repeat()
        return shuffled.map_with_index(lambda index, record: load(record, index // size))

    if not weights:
        return repeated(grain.MapDataset.concatenate(datasets))
    mixed = grain.MapDataset.mix([*map(repeated, datasets)], weights)
    # A row of a batch takes every n-th record, and the mixture is periodic: it might take them all of one dataset.
    return grain.experimental.WindowShuffleMapDataset(mixed, window_size=_WINDOW, seed=seed)
