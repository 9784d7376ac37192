"""A language model, shards and a config small enough to train in a test, all real and all made on the spot."""

import pathlib
import sys

import ml_collections
import numpy as np
import pytest
from odd_folders import ODD

import viavsp_jax
from configs import demo
from convert import from_hf
from viavsp_jax.data import lengths, records
from viavsp_jax.data.prompt import Prompt
from viavsp_jax.data.sources import LeftOut, count_fields, open_sources
from viavsp_jax.prepare.demo.sentences import sample_sentences
from viavsp_jax.run_settings import read_settings

DEMO_LLAMA = pathlib.Path(viavsp_jax.__file__).parent / "demo_models" / "llama"
WIDTH = 12


def make_example(rng: np.random.Generator, name: str, transcript: str, width: int = WIDTH) -> dict:
    """An example of 20 to 40 random frames in runs of 1 to 3."""
    counts = rng.integers(1, 4, size=rng.integers(12, 18))
    return {
        "id": name,
        "features": rng.normal(size=(counts.sum(), width)).astype(np.float16),
        "cluster_counts": counts.astype(np.int32),
        "transcript": transcript,
        "source_language": "vi",
        "target_language": "vi",
    }


def make_shards(folder: pathlib.Path, *, seed: int = 0, width: int = WIDTH, train: int = 24) -> pathlib.Path:
    """A dataset folder with splits train, valid and test."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("valid", 5), ("test", 5)):
        sentences = sample_sentences(seed, count, split)
        examples = [make_example(rng, f"{split}{seed}_{i}", text, width) for i, text in enumerate(sentences)]
        records.write_shard(records.shard_path(folder, split, 0, 1), examples)
    records.write_metadata(folder, width, ["train", "valid", "test"])
    return folder


def make_llm(folder: pathlib.Path) -> pathlib.Path:
    """The demo's language model, converted."""
    from_hf.convert(DEMO_LLAMA, folder, dtype="float32")
    return folder


def small_config(llm: pathlib.Path, shards: pathlib.Path) -> ml_collections.ConfigDict:
    """The demo's config on these shards: 4 updates of 2 rows."""
    config = demo.get_config()
    config.ctc.weight = 0.0
    config.llm.path, config.data.path = str(llm), str(shards)
    config.data.train = ("av_clean",)
    config.data.feature_width = WIDTH
    config.data.rows = 2
    config.data.row = {"positions": 128, "frames": 96, "labels": 40, "clips": 4, "window": 96}
    config.updates, config.log_every, config.checkpoint.every = 4, 2, 2
    config.optimizer.warmup_updates, config.optimizer.decay_updates = 1, 3
    config.samples.clips = 0
    config.evaluate.names = ("av_clean",)
    config.evaluate.rows, config.evaluate.bucket, config.evaluate.decoding.max_new_tokens = 4, 32, 12
    return config


def check_lengths(config: ml_collections.ConfigDict, prompt: Prompt, workdir: pathlib.Path) -> LeftOut:
    """What is left out of the splits that training reads."""
    data, splits = read_settings(config).data, []
    for split in ("train", "valid"):
        for name, source in zip(data.train, open_sources(data, data.train, split), strict=True):
            ways = data.compression if split == "train" else data.compression[:1]
            listed = lengths.read_lengths(source, count_fields(data, name, split), ways)
            splits.append(lengths.Split(name, source, listed, lengths.instructions(prompt, listed)))
    return lengths.check(data, prompt, splits, workdir)


def command(config: ml_collections.ConfigDict, workdir: pathlib.Path, **settings) -> list[str]:
    """The command that trains with the settings of `config`, one of `small_config`, and these."""
    given = {
        "llm.path": config.llm.path,
        "ctc.weight": config.ctc.weight,
        "data.path": config.data.path,
        "data.train": "av_clean",
        "data.feature_width": WIDTH,
        "data.rows": config.data.rows,
        **{f"data.row.{name}": size for name, size in config.data.row.items()},
        "optimizer.warmup_updates": config.optimizer.warmup_updates,
        "optimizer.decay_updates": config.optimizer.decay_updates,
        "log_every": config.log_every,
        "checkpoint.every": config.checkpoint.every,
        **settings,
    }
    start = [sys.executable, "-m", "viavsp_jax.main", "--config=configs/demo.py", f"--workdir={workdir}"]
    return start + [f"--config.{name}={value}" for name, value in given.items()]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """The converted language model, and a folder with the shards av_clean; read only."""
    folder = tmp_path_factory.mktemp(ODD)
    make_shards(folder / "shards" / "av_clean")
    return make_llm(folder / "llm"), folder / "shards"
