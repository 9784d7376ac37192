"""A small corpus in the VASR layout, of real mp4 and wav files, and a narrow encoder, to test prepare."""

import json
import shutil
import wave
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.avhubert_torch import AVHubert, save_encoder

WIDTH, LAYERS = 32, 3


def write_video(path: Path, num_frames: int, rng: np.random.Generator) -> None:
    """Two blurred noise images that fade into one another, 96x96, 25 fps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, last = (cv2.GaussianBlur(rng.integers(0, 256, (96, 96)).astype(np.float32), (0, 0), 4) for _ in "ab")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (96, 96))
    for fade in np.linspace(0, 1, num_frames):
        gray = (((1 - fade) * first + fade * last - 100) * 4).clip(0, 255).astype(np.uint8)
        writer.write(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR))
    writer.release()


def write_audio(path: Path, num_samples: int, rng: np.random.Generator) -> None:
    """A tone in noise, 16 kHz mono int16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 6000 * np.sin(np.arange(num_samples) * rng.uniform(0.05, 0.5)) + rng.normal(0, 500, num_samples)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(tone.astype(np.int16).tobytes())


def write_corpus(folder: Path, lengths: dict[str, list[int]], seed: int = 0) -> pd.DataFrame:
    """Writes clips of the given lengths (frames) for each split, in two channels; returns the metadata."""
    rng = np.random.default_rng(seed)
    rows, mapping = [], []
    for split, frames in lengths.items():
        for number, num_frames in enumerate(frames):
            name, shard = f"{split}-{number:03d}", f"{number % 2:05d}"
            write_video(folder / f"visual/{shard}/{name}.mp4", num_frames, rng)
            write_audio(folder / f"audio/{shard}/{name}.wav", num_frames * 640, rng)
            rows.append((name, shard, 25.0, 16_000, f"câu số {number}", num_frames, num_frames * 640, split))
            mapping.append({"id": name, "shard": shard, "split": split, "channel": f"kênh {number % 2}"})
    columns = "id shard fps sampling_rate transcript video_num_frames audio_num_frames split".split()
    metadata = pd.DataFrame(rows, columns=columns)
    metadata.to_parquet(folder / "metadata.parquet")
    (folder / "mapping.json").write_text(json.dumps(mapping, ensure_ascii=False))
    return metadata


def heard_as(encoder: Path, waveform: str, folder: Path) -> Path:
    """A copy of an encoder's folder whose audio features are made of other samples."""
    shutil.copytree(encoder, folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(values | {"waveform": waveform}), encoding="utf-8")
    return folder


def with_gaps(samples: np.ndarray) -> np.ndarray:
    """Digital silence in every other 20 ms: the norm of audio features does not take the scale away then."""
    return samples * (np.arange(len(samples)) // 320 % 2).astype(samples.dtype)


def write_encoder(folder: Path, seed: int = 0) -> AVHubert:
    """A randomly initialised encoder, WIDTH wide, of LAYERS layers, in eval mode."""
    torch.manual_seed(seed)
    config = AVHubertConfig(
        embed_dim=WIDTH,
        num_layers=LAYERS,
        num_heads=4,
        ffn_dim=48,
        frontend_channels=2,
        resnet_channels=(2, 3, 4, 5),
        conv_pos=8,
        conv_pos_groups=4,
    )
    model = AVHubert(config).eval()
    save_encoder(model, folder)
    return model
