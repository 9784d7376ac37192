"""Every reader of files from elsewhere, with small real files to begin from; what tests/stress/fuzz.py runs.

A reader gets the path of the damaged file; what else lies in its folder is as it was made. It returns, or raises
InputError. All are imported here, before the processes that run them are made.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from convert import avhubert, from_avhubert, from_fairseq, from_km
from convert.checkpoints import read_fairseq, read_moments
from convert.decode_hf import read_config
from tests.helpers.hf_weights import load_params
from tests.stress import fuzz_files as files
from viavsp_jax import llm_folder
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import media, records
from viavsp_jax.data.examples import FEATURES, MEDIA
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.evaluation.report.events import read_curves
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.prepare import kmeans, manifest, mouths
from viavsp_jax.prepare.features.avhubert_torch import encoder_from_weights, load_encoder
from viavsp_jax.prepare.manifest_files import read_manifest
from viavsp_jax.prepare.recordings import mouth
from viavsp_jax.prepare.recordings.recording import read_recording
from viavsp_jax.report import remake
from viavsp_jax.state import abstract_model

MINUTE = 60


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
      write: makes the files to begin from in an empty folder; the same ones each time.
      read: reads one of them, with the others around it.
      share: of all inputs, in comparison with other targets; cheap ones get more.
      memory: MB by which one input may make the process grow, beyond what it holds before.
    """

    name: str
    write: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], object]
    share: float = 1.0
    memory: int = 64


def read_pt(path: pathlib.Path) -> None:
    """A fairseq checkpoint: weights, the optimizer's moments, settings of an encoder."""
    read = read_fairseq(path)
    read_moments(path, ["encoder.0.weight", "encoder.1.weight"])
    if from_fairseq.RESNET + "frontend3D.0.weight" in read.model:
        from_fairseq.encoder_config(read, str(path))


def read_llm(path: pathlib.Path) -> None:
    """All of a converted language model, and one layer of it."""
    folder = next(parent for parent in path.parents if (parent / "conversion.json").exists())
    llm_folder.read_conversion(folder)
    shapes = abstract_model(ModelConfig(llm_folder.llama_config(folder), LoRAConfig(), 1, np.float32))[2]
    llm_folder.load_llm(folder, shapes["llm"])
    llm_folder.read_layer(folder, "layers/q/kernel", 0)


def read_encoder(path: pathlib.Path) -> None:
    """An encoder, by PyTorch and by Flax."""
    load_encoder(path.parent)
    avhubert.load_flax(path.parent)


def read_hf_encoder(path: pathlib.Path) -> None:
    """An encoder inside a larger model, of a file of weights or, with a config, of the folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        read = from_avhubert.read_pretrained(path.parent if path.name == "config.json" else path)
    encoder_from_weights(read.config, read.weights, read.source)


def read_wav(path: pathlib.Path) -> None:
    """The header of a recording of speech, and all of it."""
    media.check_audio(path)
    media.read_audio(path)


def read_pictures_and_sound(path: pathlib.Path) -> None:
    """As the web page does, with a limit; a minute here."""
    recording = read_recording(path, MINUTE)
    if recording.size:
        for _ in recording.frames():
            pass


def read_corpus(path: pathlib.Path) -> None:
    """The stage `manifest`, which reads tables and channels and, where these do not say it, how long media are."""
    parser = argparse.ArgumentParser()
    manifest.add_arguments(parser)
    options = [
        "--data",
        str(path.parent),
        "--output",
        str(path.parent.parent / "out"),
        "--frac",
        "0.5",
        "--workers",
        "0",
    ]
    manifest.run(parser.parse_args(options))


def read_transcripts(path: pathlib.Path) -> None:
    """The table that the stage `mouths` takes."""
    mouths._read_transcripts(str(path))


def read_shards(path: pathlib.Path) -> None:
    """Every record of a split."""
    kind = MEDIA if path.parent.name == MEDIA.name else FEATURES
    for _ in records.open_split(path.parent, "test", kind):  # not as a list, which believes what length it has
        pass


def read_report(path: pathlib.Path) -> None:
    """Makes a report again, and puts the one back that it began from."""
    folder = path.parents[2] if path.parent.parent.name == "evaluations" else path.parent
    before = {file: file.read_bytes() for file in folder.rglob("report.json")}
    try:
        remake(folder, folder / "mapping.json")
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def read_checkpoint(path: pathlib.Path) -> None:
    """All of the best checkpoint, which is what was saved if it can be read."""
    checkpoints = Checkpoints(next(folder.parent for folder in path.parents if folder.name == "checkpoints"))
    step = checkpoints.choose("best")
    for read in (checkpoints.restore_config, checkpoints.restore_fits, checkpoints.restore_run_info):
        read(step)
    saved = files.small_state()
    state = checkpoints.restore(step, saved, None)
    assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(saved))), "something else was read"


def of_folder(read: Callable[..., object], *more: object) -> Callable[[pathlib.Path], object]:
    """A reader of the folder that the damaged file is in."""
    return functools.partial(_read_folder, read, *more)


def _read_folder(read: Callable[..., object], *more_and_path: Any) -> object:
    *more, path = more_and_path
    return read(path.parent, *more)


TARGETS = (
    Target("fairseq", files.write_fairseq, read_pt, 4),
    Target("km", files.write_km, from_km.read_centers, 4),
    Target("centers", files.write_centers, kmeans.load_centers, 3),
    Target("face", files.write_face, mouth.load_mean_face, 2),
    Target("hf", files.write_hf, of_folder(load_params), 2, 128),
    Target("llm", files.write_llm, read_llm, 1.5, 128),
    Target("tokenizer", files.write_tokenizer, of_folder(load_prompt, "</s>"), 1, 128),
    Target("encoder", files.write_encoder, read_encoder, 1, 128),
    Target("encoder_hf", files.write_hf_encoder, read_hf_encoder, 2, 128),
    Target("wav", files.write_wav, read_wav, 4),
    Target("mp4", files.write_mouth_video, media.read_video, 6, 256),
    # FFmpeg makes room for whatever length a file declares of one of its parts, up to 2 GiB, and gives it back at once.
    Target("recording", files.write_recordings, read_pictures_and_sound, 6, 2200),
    Target("corpus", files.write_corpus, read_corpus, 2, 128),
    Target("archive", files.write_archive, read_corpus, 4, 256),
    Target("dataset", files.write_dataset, read_corpus, 3, 256),
    Target("manifest", files.write_manifest, of_folder(read_manifest, "train"), 4),
    Target("transcripts", files.write_transcripts, read_transcripts, 3, 128),
    Target("records", files.write_shards, read_shards, 3, 128),
    Target("report", files.write_report, read_report, 0.3, 128),
    Target("curves", files.write_curves, of_folder(read_curves), 1),
    Target("checkpoint", files.write_checkpoint, read_checkpoint, 0.5, 128),
    Target("export", files.write_export, of_folder(read_config), 1),
)
