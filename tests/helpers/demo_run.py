"""The demo in small: its models, a few of its clips, a short training and its export; shared by what needs a model
that takes media."""

import pathlib

import av
import pytest
from odd_folders import ODD
from small_run import DEMO_LLAMA, make_llm

from configs import demo
from convert import to_hf
from viavsp_jax import evaluate, train
from viavsp_jax.prepare.__main__ import main as prepare
from viavsp_jax.prepare.manifest_files import Clip, read_manifest

DEMO_ENCODER = DEMO_LLAMA.parent / "avhubert"
MODALITIES = ("av", "audio", "video")
TEST_CLIPS = 4


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory) -> pathlib.Path:
    """corpus, manifest, kmeans.safetensors, shards, llm, and the work folder `run` with its evaluation; read only."""
    folder = tmp_path_factory.mktemp(ODD)
    corpus, manifest, kmeans, shards = (str(folder / x) for x in ("corpus", "manifest", "kmeans.safetensors", "shards"))
    sizes = ["--num_train", "16", "--num_valid", "4", "--num_test", str(TEST_CLIPS)]
    prepare(["demo", "--output", corpus, *sizes, "--workers", "1"])
    prepare(["manifest", "--data", corpus, "--output", manifest])
    encoder = ["--manifest", manifest, "--encoder", str(DEMO_ENCODER), "--workers", "0", "--device", "cpu"]
    prepare(["kmeans", *encoder, "--output", kmeans, "--layer", "2", "--num_clusters", "100"])
    prepare(["shards", *encoder, "--kmeans", kmeans, "--output", shards, "--modalities", *MODALITIES])
    config = demo.get_config()
    config.ctc.weight = 0.0
    config.llm.path, config.data.path = str(make_llm(folder / "llm")), shards
    config.data.train = config.evaluate.names = tuple(f"{modality}_clean" for modality in MODALITIES)
    config.data.rows, config.updates, config.checkpoint.every, config.log_every = 2, 8, 8, 8
    config.optimizer.warmup_updates, config.optimizer.decay_updates = 1, 7
    config.evaluate.rows = 4
    config.evaluate.decoding.num_beams, config.evaluate.decoding.max_new_tokens = 3, 16
    train.train(config, folder / "run")
    evaluate.evaluate(config, folder / "run")
    return folder


@pytest.fixture(scope="session")
def demo_export(demo_folder) -> pathlib.Path:
    """Its export, which takes media."""
    to_hf.export(demo_folder / "run", str(demo_folder / "export"))
    return demo_folder / "export"


@pytest.fixture(scope="session")
def demo_merged(demo_folder) -> pathlib.Path:
    """The same with `merged/`."""
    to_hf.export(demo_folder / "run", str(demo_folder / "export_merged"), merge=True)
    return demo_folder / "export_merged"


@pytest.fixture(scope="session")
def demo_clips(demo_folder) -> list[pathlib.Path]:
    """The test clips, each with picture and sound in one file, both as they are in the corpus."""
    folder = demo_folder / "joined"
    folder.mkdir()
    return [join(clip, folder / f"{clip.id}.mov") for clip in read_manifest(demo_folder / "manifest", "test")]


def join(clip: Clip, path: pathlib.Path) -> pathlib.Path:
    """Copies the packets of a clip's two files into one."""
    with av.open(clip.video) as video, av.open(clip.audio) as audio, av.open(str(path), "w") as joined:
        sources = [container.streams[0] for container in (video, audio)]
        targets = {source: joined.add_stream_from_template(source) for source in sources}
        for container in (video, audio):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = targets[packet.stream]
                    joined.mux(packet)
    return path
