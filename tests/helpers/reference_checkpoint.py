"""The recorded checkpoint of the reference, and what it is taken up with; shared by the tests of both directions."""

import lzma
import pathlib
import shutil

import ml_collections
import pytest
from places import GOLDEN

from configs import base
from convert import from_hf, from_reference
from convert.checkpoints import read_fairseq
from viavsp_jax.experiment import load_experiment


@pytest.fixture(scope="session")
def best(tmp_path_factory) -> pathlib.Path:
    """checkpoint_best.pt, unpacked; read only."""
    path = tmp_path_factory.mktemp("reference") / "checkpoint_best.pt"
    path.write_bytes(lzma.decompress((GOLDEN / "avsp" / "checkpoint_best_gqa.pt.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def avhubert(tmp_path_factory) -> pathlib.Path:
    """The AV-HuBERT checkpoint that it grew from."""
    path = tmp_path_factory.mktemp("avhubert") / "large_tiny.pt"
    path.write_bytes(lzma.decompress((GOLDEN / "avhubert" / "large_tiny.pt.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def llm_gqa(tmp_path_factory) -> pathlib.Path:
    """The language model that it was trained around, converted."""
    folder = tmp_path_factory.mktemp("llm") / "gqa"
    from_hf.convert(GOLDEN / "avsp" / "llm_gqa", folder)
    return folder


def recorded_config(best: pathlib.Path, llm: pathlib.Path) -> ml_collections.ConfigDict:
    """A config as a user would give it: the reference's recipe, with the recorded run's sizes and schedule."""
    read = read_fairseq(best)
    c, theirs = base.get_config(), read.cfg["lr_scheduler"]
    c.dtype = "float32"
    c.llm.path = str(llm)
    c.data.feature_width = read.model["avfeat_to_llm.weight"].shape[1]
    c.updates = read.cfg["optimization"]["max_update"]
    c.optimizer.peak_lr = theirs["lr"][0]
    c.optimizer.warmup_updates = theirs["warmup_steps"]
    c.optimizer.hold_updates = theirs["hold_steps"]
    c.optimizer.decay_updates = theirs["decay_steps"]
    return c


@pytest.fixture
def config(best, llm_gqa) -> ml_collections.ConfigDict:
    """The recipe, to be changed."""
    return recorded_config(best, llm_gqa)


@pytest.fixture(scope="session")
def taken_up(best, llm_gqa, tmp_path_factory) -> pathlib.Path:
    """The work folder with the checkpoint; read only."""
    folder = tmp_path_factory.mktemp("taken_up") / "work"
    from_reference.convert(best, load_experiment(recorded_config(best, llm_gqa)), folder)
    return folder


@pytest.fixture
def workdir(taken_up, tmp_path) -> pathlib.Path:
    """That work folder, to be changed."""
    return pathlib.Path(shutil.copytree(taken_up, tmp_path / "work"))


@pytest.fixture(scope="session")
def encoder(best, avhubert, tmp_path_factory) -> pathlib.Path:
    """Its encoder, taken out."""
    folder = tmp_path_factory.mktemp("encoder") / "large"
    from_reference.convert_encoder(best, avhubert, folder)
    return folder
