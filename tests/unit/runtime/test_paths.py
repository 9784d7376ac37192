"""Folders of any name: what is in them is found, and nothing else."""

import pytest
import tensorstore
from etils import epath
from odd_folders import ODD_NAMES

from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.evaluation.report.events import read_curves
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.paths import key_value_store
from viavsp_jax.runtime.tensorboard import Writer


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Folders of all names, and of those that they would match as patterns."""
    parent = tmp_path_factory.mktemp("parent")
    for name in [*ODD_NAMES, "run 2", "b", "axb", "qx", "a", "c"]:
        (parent / name / "sub").mkdir(parents=True)
        for file in ("x.jsonl", ".s.1.tmp", "sub/process_0", "sub/other"):
            (parent / name / file).touch()
    return parent


@pytest.mark.parametrize("name", ODD_NAMES)
def test_glob_finds_what_is_in_the_folder(parent, name):
    for folder in (epath.Path(parent / name), epath.Path(parent) / name, epath.Path(parent, name)):
        assert list(folder.glob("*.jsonl")) == [folder / "x.jsonl"] == [epath.Path(parent / name / "x.jsonl")]
        assert list(folder.glob("sub/process_*")) == [folder / "sub" / "process_0"]
        assert list(folder.glob(".s.*.tmp")) == [folder / ".s.1.tmp"]
        assert list(folder.glob("y*")) == list((folder / "none").glob("*")) == []
        with pytest.raises(NotImplementedError, match="Recursive"):
            list(folder.rglob("*"))


def test_glob_of_the_working_folder(parent, monkeypatch):
    monkeypatch.chdir(parent / ODD_NAMES[0])
    assert list(epath.Path().glob("*.jsonl")) == [epath.Path("x.jsonl")]
    assert list(epath.Path("..", "run [2]").glob("*.jsonl")) == [epath.Path("../run [2]/x.jsonl")]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_tensorstore_finds_the_folder(parent, name):
    local = tensorstore.KvStore.open(key_value_store(parent / name)).result()
    assert b"x.jsonl" in local.list().result()
    if not name.isprintable():
        return
    bucket = tensorstore.KvStore.Spec(key_value_store(epath.Path(f"gs://bucket/{name}"))).to_json()
    assert (bucket["bucket"], bucket["path"]) == ("bucket", f"{name}/")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_curves_of_a_training(tmp_path, name):
    writer = Writer(tmp_path / name, {})
    writer.write(3, {"train/loss": 0.5})
    writer.close()
    assert read_curves(tmp_path / name / "tensorboard") == {"train/loss": {3: 0.5}}


def test_a_backslash_which_tensorstore_takes_for_a_slash(tmp_path):
    for path in (tmp_path / "a\\b", epath.Path("gs://bucket/a\\b")):
        with pytest.raises(InputError, match=r"a\\b.*: a folder with a backslash in its name cannot hold arrays"):
            Checkpoints(path)
    assert not list(tmp_path.iterdir())
