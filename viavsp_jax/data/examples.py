"""The two kinds of record: what they hold, and when they are valid.

An example is one clip (T frames, D encoder width, S runs of equal clusters, n audio samples). FEATURES hold what the
frozen encoder made of it, MEDIA the clip itself, for training that runs the encoder:

  id               text          the clip's name in the corpus
  transcript       text          what is said
  source_language, target_language  text, e.g. vi and vi

  features         float16[T, D] last-layer encoder features, FEATURES only
  cluster_counts   int32[S]      lengths of the runs of equal clusters, all 1 without K-Means; they sum to T

  video            bytes         the mouth video as the corpus' mp4 file holds it (media.decode_video), MEDIA only
  audio            int16[n]      the waveform, 16 kHz
  cluster_counts_av, cluster_counts_audio, cluster_counts_video  int32[S]  with both modalities, or one of them alone

Video stays as it is because nothing else is both small and exact. Measured on the demo's clips of 55 frames, kB and ms
to decode with one thread: mp4 18, 1.6; WebP without loss 169, 4.9; PNG 209, 5.6; JPEG of quality 95 109, 1.3, off by up
to 8 grey levels.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from viavsp_jax.runtime.errors import InputError

Example = dict[str, Any]
Fields = dict[str, tfds.features.FeatureConnector]

PROVENANCE = "provenance.json"  # of a folder of records: what made them, see prepare/features/provenance.py
MODALITIES = ("av", "audio", "video")
TEXT_FIELDS = ("id", "transcript", "source_language", "target_language")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the two kinds differ in."""

    name: str  # of the dataset
    version: str  # of the schema
    description: str
    counts: tuple[str, ...]  # the fields that hold run lengths
    content: Callable[[int | None], Fields]  # the TFDS features of the other fields that are no text, by width
    num_frames: Callable[[Example, str], int]  # checks the content, too

    def schema(self, width: int | None) -> tfds.features.FeaturesDict:
        """The TFDS features of an example. Arrays are raw bytes: as lists of numbers, TFDS's default, a float16 record
        is twice as large, 60 times slower to write and 6 times slower to read."""
        texts = {name: tfds.features.Text() for name in TEXT_FIELDS}
        counts = {name: _array((None,), np.int32) for name in self.counts}
        return tfds.features.FeaturesDict(texts | counts | self.content(width))

    def validate(self, example: Example, path: epath.PathLike, index: int) -> None:
        """Checks what the schema cannot say, texts as str: content, counts that cover the frames, a transcript.

        Raises InputError naming the shard, the record's place in it and the clip.
        """
        where = f"{os.fspath(path)}: record {index} (id {example['id']!r})"
        num_frames = self.num_frames(example, where)
        for name in self.counts:
            counts = example[name]
            if counts.ndim != 1 or counts.min(initial=1) < 1 or counts.sum() != num_frames:
                raise InputError(
                    f"{where} has {name} that sum to {counts.sum()}, the smallest {counts.min(initial=1)}, "
                    f"expected positive counts that sum to its {num_frames} frames."
                )
        if not example["transcript"].strip():
            raise InputError(f"{where} has an empty transcript.")


def width_of(fields: Mapping[str, Any]) -> int | None:
    """The encoder width of an example or, by the shapes there, of a TFDS schema. None where nothing has one."""
    return fields["features"].shape[1] if "features" in fields else None


def _array(shape: tuple[int | None, ...], dtype: np.typing.DTypeLike) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


def _num_feature_frames(example: Example, where: str) -> int:
    features = example["features"]
    if features.ndim != 2 or not len(features):
        raise InputError(f"{where} has features of shape {features.shape}, expected [frames, width].")
    # The exponent bits of float16 are all ones for inf and NaN only; 8 times faster than np.isfinite.
    if (np.ascontiguousarray(features).view(np.uint16) & 0x7C00).max() == 0x7C00:
        raise InputError(f"{where} has features that are not finite numbers.")
    return len(features)


def _num_video_frames(example: Example, where: str) -> int:
    """By the counts: to decode the video takes 50 times as long as to read the record."""
    if not example["video"]:
        raise InputError(f"{where} has an empty video.")
    if example["audio"].ndim != 1 or not len(example["audio"]):
        raise InputError(f"{where} has audio of shape {example['audio'].shape}, expected [samples].")
    return max(1, int(example["cluster_counts_av"].sum()))


def _feature_content(width: int | None) -> Fields:
    return {"features": _array((None, width), np.float16)}


def _media_content(_: int | None) -> Fields:
    # A tensor of one string is bytes, as they are; TFDS's own Video would decode them.
    return {"video": tfds.features.Tensor(shape=(), dtype=np.object_), "audio": _array((None,), np.int16)}


# Named functions: Grain sends what reads records to its workers, and a lambda cannot be sent.
FEATURES = Kind(
    name="viavsp",
    version="1.0.0",
    description="Encoder features of talking faces.",
    counts=("cluster_counts",),
    content=_feature_content,
    num_frames=_num_feature_frames,
)
MEDIA = Kind(
    name="viavsp_media",
    version="1.0.0",
    description="Videos of mouths and what is said.",
    counts=tuple(f"cluster_counts_{modality}" for modality in MODALITIES),
    content=_media_content,
    num_frames=_num_video_frames,
)
