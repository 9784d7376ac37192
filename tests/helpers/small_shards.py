"""A prepared corpus for the tests of the shards stage, and what they compare with."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_folders import ODD
from small_corpus import write_corpus, write_encoder

from viavsp_jax.data import media, records
from viavsp_jax.data.examples import FEATURES, MEDIA, Kind
from viavsp_jax.data.features import audio_features, video_input
from viavsp_jax.prepare import kmeans
from viavsp_jax.prepare.__main__ import main
from viavsp_jax.prepare.features.avhubert_torch import load_encoder
from viavsp_jax.prepare.manifest_files import Clip

LAYER = 2
FRAMES = {"train": [7, 12, 5, 9, 12, 8, 6], "test": [6, 10, 4]}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A corpus, its manifest, an encoder and centres; read only."""
    return prepare(tmp_path_factory.mktemp(ODD))


def prepare(folder: Path) -> Path:
    torch.set_num_threads(1)
    write_corpus(folder / "corpus", FRAMES)
    main(["manifest", "--data", str(folder / "corpus"), "--output", str(folder / "manifest")])
    write_encoder(folder / "encoder")
    main(
        [
            "kmeans",
            "--manifest",
            str(folder / "manifest"),
            "--encoder",
            str(folder / "encoder"),
            "--workers",
            "0",
        ]
        + [
            "--output",
            str(folder / "kmeans"),
            "--layer",
            str(LAYER),
            "--num_clusters",
            "7",
            "--device",
            "cpu",
        ]
    )
    return folder


def options(folder: Path, output: Path, *more: str, **paths: Path) -> list[str]:
    paths = {name: folder / name for name in ("manifest", "encoder", "kmeans")} | {"output": output} | paths
    inputs = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    device = [] if "jax" in more else ["--device", "cpu"]
    return ["shards", *inputs, *device, "--workers", "0", "--batch_size", "3", *more]


def refused(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def kind(folder: Path) -> Kind:
    return MEDIA if folder.name.startswith("media_") else FEATURES


def read(folder: Path, split: str) -> dict[str, dict]:
    return {example["id"]: example for example in records.open_split(folder, split, kind(folder))}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_datasets(ours: Path, theirs: Path) -> None:
    """The same files, but that the fields of a record may be stored in another order."""
    found, expected = contents(ours), contents(theirs)
    leftovers = [name for name in found if name.endswith(".tmp")]
    assert not [name for name in leftovers if "array_record" in name]
    assert found.keys() - set(leftovers) == expected.keys()
    for name in expected:
        if "array_record" not in name:
            assert found[name] == expected[name], name
    for info in theirs.rglob("dataset_info.json"):
        folder = info.parent.relative_to(theirs)
        for split in FRAMES:
            pairs = zip(
                records.open_split(ours / folder, split, kind(folder)),
                records.open_split(theirs / folder, split, kind(folder)),
                strict=True,
            )
            for left, right in pairs:
                assert left.keys() == right.keys()
                assert all(np.array_equal(left[name], right[name]) for name in left)


def identity(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_ino


@functools.cache
def encoder_and_centers(folder: Path) -> tuple[torch.nn.Module, np.ndarray]:
    return load_encoder(folder / "encoder"), kmeans.load_centers(str(folder / "kmeans"))[0]


def alone(
    folder: Path,
    clip: Clip,
    modality: str,
    samples: np.ndarray,
    frames: np.ndarray | None = None,
    shown: np.ndarray | None = None,
    waveform: str = "int16",
) -> tuple[np.ndarray, list[int]]:
    """Features float32[T, D] and run lengths of one clip, without batches, padding or the stage's code."""
    model, centers = encoder_and_centers(folder)
    frames = media.read_video(clip.video) if frames is None else frames
    with torch.inference_mode():
        audio = torch.from_numpy(audio_features(samples, len(frames), waveform))[None]
        heard = None if modality == "video" else model.audio_features(audio)
        pictures = torch.from_numpy(video_input(frames))[None]
        if shown is not None:
            pictures = pictures * torch.from_numpy(shown)[None, :, None, None]
        seen = None if modality == "audio" else model.video_features(pictures)
        if shown is not None:
            seen = seen * torch.from_numpy(shown)[None, :, None]
        layer, final = model.encode(heard, seen, None, LAYER)
    labels = np.linalg.norm(layer[0, :, None].double() - torch.from_numpy(centers), axis=2).argmin(1)
    counts = [len(list(run)) for _, run in itertools.groupby(labels.tolist())]
    return final[0].numpy(), counts
