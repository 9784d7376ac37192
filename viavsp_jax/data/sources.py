"""The shard folders that names in a config stand for, and which of their records are used.

With a frozen encoder a name is that of a folder of features. Where the encoder is trained it is MODALITY_CONDITION: a
way to take the clips of `media_CONDITION`.
"""

from collections.abc import Mapping, Sequence

import grain
from etils import epath

from viavsp_jax.data import records
from viavsp_jax.data.examples import FEATURES, MEDIA, MODALITIES
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.runtime.errors import InputError

# The ids of records that are left out, by name in the config and split.
LeftOut = Mapping[tuple[str, str], frozenset[str]]


def modality_of(name: str) -> str:
    """How the clips of a name are taken; InputError if the name is none of clips."""
    modality, _, condition = name.partition("_")
    if modality not in MODALITIES or not condition:
        raise InputError(f"{name!r} in the config names no clips, expected one of {MODALITIES}, _ and a condition")
    return modality


def folder_of(data: DataSettings, name: str) -> epath.Path:
    """Where the records of a name lie."""
    folder = f"media_{name.partition('_')[2]}" if data.of_clips else name
    return epath.Path(data.path) / folder


def open_sources(data: DataSettings, names: Sequence[str], split: str) -> list[records.SplitSource]:
    """One split of each of these.

    Raises InputError if a folder is not there, has no such split or no records in it, or does not fit the config.
    """
    if not data.path:
        raise InputError("config.data.path is not set: expected the folder that holds the shard folders")
    kind, sources = MEDIA if data.of_clips else FEATURES, []
    for name in names:
        if data.of_clips:
            modality_of(name)
        source = records.open_split(folder_of(data, name), split, kind)
        if source.width not in (None, data.feature_width):
            raise InputError(
                f"{source.folder} holds features of width {source.width}, but config.data.feature_width is "
                f"{data.feature_width}"
            )
        sources.append(source)
    return sources


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
    ids = (left_out or {}).get((name, source.split))
    return dataset.filter(lambda record: record["id"] not in ids) if ids else dataset
