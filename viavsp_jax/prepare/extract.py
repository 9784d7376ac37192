"""Clips in, encoder outputs out: decoding in worker processes, batches of similar length.

B clips of a batch, T frames of the longest, D encoder width.
"""

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from viavsp_jax.errors import InputError
from viavsp_jax.prepare import media, noise
from viavsp_jax.prepare.avhubert_torch import AVHubert, load_encoder
from viavsp_jax.prepare.manifest import Clip

MODALITIES = ("av", "audio", "video")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# So many other clips are heard at once in babble.
_NUM_TALKERS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every stage that runs the encoder."""
    parser.add_argument("--manifest", required=True, help="folder with {split}.tsv and {split}.wrd")
    parser.add_argument(
        "--encoder",
        required=True,
        help="AV-HuBERT folder: config.json and model.safetensors",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="clips encoded at a time (default 8)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="number format of the encoder")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes that decode media; 0: none",
    )


def load_model(args: argparse.Namespace) -> AVHubert:
    """The encoder that the options ask for. Raises InputError if it or the device is not usable."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InputError(f"--device {device} is not usable here ({str(error).splitlines()[0]}).") from error
    if args.batch_size < 1 or args.workers < 0:
        raise InputError(f"--batch_size {args.batch_size}, --workers {args.workers}: expected at least 1 and 0.")
    return load_encoder(args.encoder, _DTYPES[args.dtype], device)


@dataclasses.dataclass(frozen=True)
class Babble:
    """Other clips of the split, mixed into a clip's audio at a fixed signal-to-noise ratio."""

    clips: Sequence[Clip]
    snr_db: float
    seed: int

    def add(self, clip: Clip, samples: np.ndarray) -> np.ndarray:
        """int16[n] -> int16[n]; the noise depends on the clip's id and the seed only.

        Raises InputError if none of the clips that were drawn can be heard.
        """
        rng = noise.rng_for(clip.id, self.seed)
        drawn = rng.choice(len(self.clips), size=min(_NUM_TALKERS + 1, len(self.clips)), replace=False)
        others = [self.clips[index].audio for index in drawn if self.clips[index].id != clip.id]
        heard = [talker for path in others[:_NUM_TALKERS] if (talker := _audio_or_silence(path)).any()]
        if not heard:
            raise InputError(f"{clip.audio}: babble for {clip.id!r} needs another clip with sound, tried {others}")
        return noise.mix(samples, noise.babble(heard, len(samples), rng), self.snr_db)


def _audio_or_silence(path: str) -> np.ndarray:
    try:
        return media.read_audio(path)
    except InputError:  # it is reported when its own turn comes
        return np.zeros(0, np.int16)


@dataclasses.dataclass(frozen=True)
class Media:
    """What the encoder needs of one clip: grey frames uint8[T, 96, 96] and audio features float32[T, 104]."""

    frames: np.ndarray
    audio: np.ndarray


def read_media(clip: Clip, babble: Babble | None) -> Media:
    """Decodes one clip. Raises InputError if its video or audio cannot be read."""
    frames = media.read_video(clip.video)
    samples = media.read_audio(clip.audio)
    if babble is not None:
        samples = babble.add(clip, samples)
    return Media(frames, media.audio_features(samples, len(frames)))


class _Batches(Dataset):
    """Item i: the clips of batch i, decoded; instead of a clip that cannot be read, the reason as str."""

    def __init__(self, clips: Sequence[Clip], batches: list[list[int]], babble: Babble | None):
        self.clips, self.batches, self.babble = clips, batches, babble

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Media | str]:
        return [self._read(self.clips[index]) for index in self.batches[number]]

    def _read(self, clip: Clip) -> Media | str:
        try:
            return read_media(clip, self.babble)
        except InputError as error:
            return str(error)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One clip in one modality: raw output of the wanted layer, and the last layer, normed; both [T, D]."""

    layer: torch.Tensor
    final: torch.Tensor


def encode_clips(
    model: AVHubert,
    clips: Sequence[Clip],
    modalities: Sequence[str],
    layer: int,
    batch_size: int,
    workers: int,
    babble: Babble | None = None,
) -> Iterator[tuple[int, dict[str, Encoded] | str]]:
    """Encodes clips, the longest first; each clip goes once through the frontends, then once per modality.

    Args:
      model: the encoder; it decides device and dtype.
      clips: what to encode.
      modalities: some of MODALITIES.
      layer: the block whose output is wanted besides the last, counted from 1.
      batch_size: clips per batch.
      workers: decoding processes.
      babble: noise to add to the audio.

    Yields:
      (index into clips, {modality: outputs}) or, for a clip that cannot be read, (index, the reason).
    """
    order = sorted(range(len(clips)), key=lambda index: -clips[index].num_frames)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    loader = DataLoader(_Batches(clips, batches, babble), batch_size=None, num_workers=workers)
    for indices, items in zip(batches, loader, strict=True):
        # A clip that cannot be read keeps its place, as zeros, so that the others are computed in the same
        # shapes and give the same bits as if it could.
        lengths = [
            clips[index].num_frames if isinstance(item, str) else len(item.frames)
            for index, item in zip(indices, items, strict=True)
        ]
        outputs = _encode_batch(model, items, lengths, modalities, layer)
        for row, (index, item) in enumerate(zip(indices, items, strict=True)):
            if isinstance(item, str):
                yield index, item
                continue
            length = lengths[row]
            yield index, {name: Encoded(*(out[row, :length] for out in outputs[name])) for name in modalities}


@torch.inference_mode()
def _encode_batch(
    model: AVHubert, items: list[Media | str], lengths: list[int], modalities: Sequence[str], layer: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{modality: (layer output, last layer)}, each [B, T, D]."""
    device, longest = next(model.parameters()).device, max(lengths)
    padding_mask = (torch.arange(longest) >= torch.tensor(lengths)[:, None]).to(device)
    heard = seen = None
    if {"av", "audio"} & set(modalities):
        audio = torch.zeros(len(items), longest, model.config.audio_dim)
        for row, item in enumerate(items):
            if not isinstance(item, str):
                audio[row, : lengths[row]] = torch.from_numpy(item.audio)
        heard = model.audio_features(audio.to(device))
    if {"av", "video"} & set(modalities):
        video = torch.zeros(len(items), longest, media.CROP_SIZE, media.CROP_SIZE)
        for row, item in enumerate(items):
            if not isinstance(item, str):
                video[row, : lengths[row]] = torch.from_numpy(media.video_input(item.frames))
        # A CPU's caches hold the activations of one clip; a GPU is filled by all of them at once.
        together = 1 if device.type == "cpu" else len(items)
        seen = torch.cat([model.video_features(part) for part in video.to(device).split(together)])
    inputs = {"av": (heard, seen), "audio": (heard, None), "video": (None, seen)}
    return {name: model.encode(*inputs[name], padding_mask, layer) for name in modalities}
