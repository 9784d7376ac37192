"""What the data room is told by a run's settings."""

import dataclasses

from viavsp_jax.data.compression import Compression
from viavsp_jax.data.lost import DropFrames
from viavsp_jax.data.masks import Masks
from viavsp_jax.data.packing import RowShape


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What happens to training clips; the fields of `config.data.augment` and its `noise`."""

    noise_probability: float
    noise_kinds: tuple[str, ...]
    snr_db: tuple[float, ...]
    talkers: tuple[int, ...]
    drop_audio: float
    drop_video: float
    drop_frames: DropFrames
    mask: Masks


@dataclasses.dataclass(frozen=True)
class ClipSeconds:
    """How long the clips of a corpus are."""

    mean: float
    longest: float


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which records are read, and into rows of which shape; most fields are those of `config.data`."""

    path: str
    train: tuple[str, ...]  # names of shard folders in `path`, or paths of others
    weights: tuple[float, ...]  # shares of these in what is drawn; empty: an epoch is all of their records
    # How frames become positions: in training one of these, drawn for each clip, else the first.
    compression: tuple[Compression, ...]
    of_clips: bool  # records are clips, for an encoder that is trained; else features
    feature_width: int
    dtype: str  # of features in batches
    seed: int  # of shuffling and augmentation
    rows: int
    row: RowShape
    seconds: ClipSeconds  # that --mode=compile reckons with
    too_long: str  # error or skip
    augment: Augmentation
    waveform: str = "int16"  # that the trained encoder's audio features are made of; its folder says it
