"""Files of the recording → what the encoder reads."""

from collections.abc import Iterator

import numpy as np
import torch

from tests.parity.rows import EXACT, MODULE, Golden, Row, close, exact
from viavsp_jax.data import media
from viavsp_jax.data.features import align, audio_features, center_crop, filterbank, normalize, stack, video_input


def utterances(golden: Golden) -> list[str]:
    """Names of the recorded utterances, e.g. utt0."""
    return [name.removeprefix("media/").removesuffix(".npz") for name in golden.names("media/utt*.npz")]


def clip(golden: Golden, utterance: str) -> tuple[np.ndarray, np.ndarray]:
    """(audio float32[T, 104], grey video uint8[T, 88, 88]), from the mp4 and wav files as a user's clip would be."""
    frames = media.read_video(golden.path(f"media/{utterance}.mp4"))
    samples = media.read_audio(golden.path(f"media/{utterance}.wav"))
    return audio_features(samples, len(frames)), center_crop(frames)


def encoder_inputs(golden: Golden, utterance: str) -> tuple[np.ndarray, np.ndarray]:
    """As `clip`, the video normalised: float32[T, 88, 88]."""
    audio, video = clip(golden, utterance)
    return audio, normalize(video)


def padded(arrays: list[np.ndarray], length: int) -> torch.Tensor:
    """Stacks [T, ...] arrays, zero-padded on the right to `length`."""
    widths = [[(0, length - len(array))] + [(0, 0)] * (array.ndim - 1) for array in arrays]
    return torch.from_numpy(np.stack([np.pad(array, width) for array, width in zip(arrays, widths, strict=True)]))


def checks(golden: Golden) -> Iterator[Row]:
    """Decoding, filterbank, stacking, alignment, normalisation and crop of every utterance."""
    info = golden.json("media/info.json")["utts"]
    for utterance in utterances(golden):
        recorded = golden.arrays(f"media/{utterance}.npz")
        frames = media.read_video(golden.path(f"media/{utterance}.mp4"))
        samples = media.read_audio(golden.path(f"media/{utterance}.wav"))
        yield exact(f"{utterance}.mp4 → frames", frames, recorded["frames"])
        size = recorded["frames_original"].size
        yield Row(f"{utterance} before the lossy mp4, {size} values", 0, EXACT, "input only", compared=False)
        yield exact(f"{utterance}.wav → samples", samples, recorded["wav"])
        bank = filterbank(samples)
        stacked = stack(bank)
        yield close(f"{utterance} log filterbank", bank, recorded["logfbank"], MODULE)
        yield close(f"{utterance} four frames stacked", stacked, recorded["stacked"], MODULE)
        aligned = align(stacked, len(frames))
        yield close(f"{utterance} aligned to the video", aligned, recorded["audio_aligned"], MODULE)
        features = audio_features(samples, len(frames))
        yield close(f"{utterance} layer-normalised audio", features, recorded["audio_norm"], MODULE)
        yield exact(f"{utterance} cropped and scaled video", video_input(frames), recorded["video_transformed"])
        (counts,) = (one for one in info if f"utt{one['utt']}" == utterance)
        found = [len(frames), len(samples), len(bank), len(stacked), len(stacked) - len(frames)]
        yield exact(f"{utterance} lengths", found, [value for name, value in counts.items() if name != "utt"])
