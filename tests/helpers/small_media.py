"""Media shards and a narrow encoder, small enough to train in a test, all real and all made on the spot."""

import pathlib
import wave

import ml_collections
import numpy as np
import pytest
from odd_folders import ODD
from small_corpus import WIDTH, write_encoder, write_video
from small_run import make_llm, small_config

from viavsp_jax.data import records
from viavsp_jax.data.examples import MEDIA, MODALITIES
from viavsp_jax.prepare.demo.sentences import sample_sentences

LONGEST = 14  # frames


def cut(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Run lengths that sum to so many frames."""
    inner = np.sort(rng.choice(np.arange(1, frames), rng.integers(3, frames - 1), replace=False))
    return np.diff(inner, prepend=0, append=frames).astype(np.int32)


def make_clip(rng: np.random.Generator, name: str, transcript: str, scratch: pathlib.Path) -> dict:
    """A clip of 8 to 14 frames with a tone in noise; each modality has runs of its own."""
    frames = int(rng.integers(8, LONGEST + 1))
    write_video(scratch / "clip.mp4", frames, rng)
    tone = 6000 * np.sin(np.arange(frames * 640) * rng.uniform(0.05, 0.5)) + rng.normal(0, 500, frames * 640)
    return {
        "id": name,
        "video": (scratch / "clip.mp4").read_bytes(),
        "audio": tone.astype(np.int16),
        **{f"cluster_counts_{modality}": cut(rng, frames) for modality in MODALITIES},
        "transcript": transcript,
        "source_language": "vi",
        "target_language": "vi",
    }


def make_media(folder: pathlib.Path, scratch: pathlib.Path, *, seed: int = 0, train: int = 20) -> pathlib.Path:
    """A dataset folder with splits train, valid and test."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("valid", 5), ("test", 5)):
        sentences = sample_sentences(seed, count, split)
        clips = [make_clip(rng, f"{split}{seed}_{i}", text, scratch) for i, text in enumerate(sentences)]
        records.write_shard(records.shard_path(folder, split, 0, 1, MEDIA), clips, MEDIA)
    records.write_metadata(folder, None, ["train", "valid", "test"], MEDIA)
    return folder


def write_recordings(folder: pathlib.Path) -> pathlib.Path:
    """A folder with two recordings of noise."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in (1, 2):
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(rng.normal(0, 1000, 3000).astype(np.int16).tobytes())
    return folder


def media_config(llm: pathlib.Path, shards: pathlib.Path, encoder: pathlib.Path) -> ml_collections.ConfigDict:
    """The small config with the encoder in it: frozen for 2 of 4 updates, without dropout and noise."""
    config = small_config(llm, shards)
    config.encoder.train, config.encoder.path, config.encoder.freeze_updates = True, str(encoder), 2
    config.encoder.layer_drop = config.encoder.activation_dropout = 0.0
    config.data.feature_width = WIDTH
    config.data.row = {"positions": 128, "frames": 2 * LONGEST, "labels": 60, "clips": 2, "window": 96}
    return config


@pytest.fixture(scope="session")
def media_folders(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    """The converted language model, a folder with the shards media_clean, and an encoder; read only."""
    folder = tmp_path_factory.mktemp(ODD)
    make_media(folder / "shards" / "media_clean", folder)
    write_encoder(folder / "encoder")
    return make_llm(folder / "llm"), folder / "shards", folder / "encoder"
