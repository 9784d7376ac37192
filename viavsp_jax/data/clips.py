"""Clips of media shards: decoded, augmented and in the form that the encoder takes.

A name in the config, MODALITY_CONDITION, is a way to take the clips of a shard folder (see viavsp_jax/data/sources.py):
with audio and video (av), or one of them alone (audio, video). The cluster counts are those for that modality, whatever
is lost of the video, or what the set's compression makes of them.

What is drawn for a clip follows from its id, the epoch and the seed alone: a rerun sees and hears the same, whatever
the number of rows, processes and threads.

Letters: T frames.
"""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from etils import epath

from viavsp_jax.data import lost, media, noise, records
from viavsp_jax.data.compression import split_name
from viavsp_jax.data.examples import MEDIA, MODALITIES
from viavsp_jax.data.features import AUDIO_DIM, CENTER, CROP_SIZE, FRAME_SIZE, audio_features
from viavsp_jax.data.masks import masked
from viavsp_jax.data.settings import DataSettings
from viavsp_jax.data.sources import (
    LeftOut,
    compressions_of,
    drawn,
    endless,
    modality_of,
    open_sources,
    records_of,
)
from viavsp_jax.runtime.errors import InputError

Arrays = dict[str, Any]


class Waveforms(Sequence):
    """What is has_audio in the clips of a media split: int16[n] each."""

    def __init__(self, source: records.SplitSource):
        self.folder, self._source = source.folder, source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source[index]["audio"]


def open_noise(folder: epath.PathLike, split: str) -> noise.Recordings | Waveforms:
    """Recordings of noise: the wav files of a folder, or the clips of media shards. Raises InputError for others."""
    if (epath.Path(folder) / "dataset_info.json").exists():
        return Waveforms(records.open_split(folder, split, MEDIA))
    return noise.Recordings(folder)


class ClipLoader:
    """The clips of one split, by the names in the config, one after the other."""

    def __init__(self, data: DataSettings, names: Sequence[str], split: str, left_out: LeftOut | None = None):
        """Raises InputError for a name, folder or setting that is not usable."""
        self.names, self.left_out = names, left_out
        self.modalities, self.sources = list(map(modality_of, names)), open_sources(data, names, split)
        self.lost = [lost.split_name(split_name(name)[0])[1] for name in names]
        self.compressions = [compressions_of(data, name) for name in names]
        self.seed, self.weights, self.augmentation = data.seed, data.weights, data.augment
        self.waveform = data.waveform
        self.recordings = {}  # of noise, where clips are augmented
        if split == "train" and self.augmentation.noise_probability:
            folders = [kind for kind in self.augmentation.noise_kinds if kind != noise.BABBLE]
            self.recordings = {folder: open_noise(folder, split) for folder in folders}

    def clips(self) -> grain.MapDataset:
        """All clips as they are."""
        return grain.MapDataset.concatenate(self._records()).map(self.load)

    def augmented(self) -> grain.MapDataset:
        """All clips in epochs without end, each in an order and with augmentation of its own (see `endless`)."""
        return endless(self._records(), self.weights, self.seed, self.load)

    def _records(self) -> list[grain.MapDataset]:
        """(number of the source, record) of each source."""
        return [
            records_of(source, name, self.left_out).map(lambda record, number=number: (number, record))
            for number, (source, name) in enumerate(zip(self.sources, self.names, strict=True))
        ]

    def load(self, numbered: tuple[int, Arrays], epoch: int | None = None) -> Arrays:
        """One record: video uint8[T, 88, 88], audio float32[T, 104], has_audio, cluster_counts and texts.

        Also has_video bool[T]: the frames that are seen. With an epoch the clip is augmented. Raises InputError if the
        video cannot be decoded.
        """
        number, record = numbered
        compression = self.compressions[number][0]
        modality, samples, place = self.modalities[number], record["audio"], (CENTER, CENTER, False)
        if epoch is not None:
            rng = noise.rng_for(record["id"], self.seed, epoch)
            place = (*rng.integers(FRAME_SIZE - CROP_SIZE + 1, size=2), rng.random() < 0.5)
            modality = self._kept(modality, rng)
            samples = self._noisy(record, number, rng) if modality != "video" else samples
        counts = record[f"cluster_counts_{modality}"]
        frames = int(counts.sum())
        has_audio, has_video = modality != "video", np.full(frames, modality != "audio")
        video = np.zeros((frames, CROP_SIZE, CROP_SIZE), np.uint8)
        if modality != "audio":
            where = f"{self.sources[number].folder}: the video of {record['id']!r}"
            video = media.crop(media.decode_video(record["video"], where), *place)
            if len(video) != frames:
                raise InputError(f"{where} has {len(video)} frames, expected {frames}, as its cluster counts sum to")
            if (share := self.lost[number]) is not None:
                video, has_video = share.lose(record["id"], video)
        audio = (
            audio_features(samples, frames, self.waveform) if has_audio else np.zeros((frames, AUDIO_DIM), np.float32)
        )
        if epoch is not None and has_audio:
            audio = masked(audio, self.augmentation.mask, rng)
        if epoch is not None:  # last, so that the rest is drawn as without it
            has_video &= self.augmentation.drop_frames.seen(frames, rng)
            compression = drawn(self.compressions[number], rng)
        texts = {name: record[name] for name in ("id", "transcript", "source_language", "target_language")}
        return texts | {
            "video": video,
            "audio": audio,
            "has_audio": has_audio,
            "has_video": has_video,
            "modality": MODALITIES.index(modality),
            "cluster_counts": compression.run_lengths(counts),
        }

    def _kept(self, modality: str, rng: np.random.Generator) -> str:
        """What modality dropout leaves of an audio-visual clip."""
        drawn, c = rng.random(), self.augmentation
        if modality != "av" or drawn >= c.drop_audio + c.drop_video:
            return modality
        return "video" if drawn < c.drop_audio else "audio"

    def _noisy(self, record: Arrays, number: int, rng: np.random.Generator) -> np.ndarray:
        c, samples = self.augmentation, record["audio"]
        if rng.random() >= c.noise_probability:
            return samples
        kind, snr_db = c.noise_kinds[rng.integers(len(c.noise_kinds))], c.snr_db[rng.integers(len(c.snr_db))]
        if kind == noise.BABBLE:
            talkers = c.talkers[rng.integers(len(c.talkers))]
            added = noise.babble_of(self.sources[number], record["id"], len(samples), rng, talkers)
        else:
            added = noise.draw_part(self.recordings[kind], len(samples), rng, kind)
        return noise.mix(samples, added, snr_db)
