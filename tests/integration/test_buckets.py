"""Everything in a bucket: language model, shards, work folder. The bucket is that of tests/helpers/gcs.py."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import gcs
import google.api_core.exceptions
import jax
import numpy as np
import pytest
import tensorstore
from etils import epath
from odd_folders import ODD
from small_run import DEMO_LLAMA, command, make_shards, small_config
from small_shards import contents, options
from tensorboard_events import scalars
from without_torch import without_torch

from convert import from_hf, to_hf
from viavsp_jax import evaluate, experiment, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.evaluation.report.results import last_folder
from viavsp_jax.prepare.__main__ import main as prepare
from viavsp_jax.runtime.atomic import check_writable
from viavsp_jax.runtime.buckets import bucket_trouble
from viavsp_jax.runtime.errors import RIGHTS, InputError
from viavsp_jax.runtime.paths import key_value_store


@pytest.fixture(scope="module")
def home():
    """A folder with an odd name in a bucket, for this process and those that it starts."""
    with gcs.serving("viavsp") as address, pytest.MonkeyPatch.context() as patch:
        for name, value in gcs.environment(address).items():
            patch.setenv(name, value)
        yield epath.Path("gs://viavsp") / ODD.replace("#", "").replace("?", "")


@pytest.fixture(scope="module")
def config(home):
    """That of a small run on a language model and shards there."""
    from_hf.convert(DEMO_LLAMA, home / "llm", dtype="float32")
    make_shards(home / "shards" / "av_clean")
    return small_config(home / "llm", home / "shards")


def ended(config, workdir, *flags: str, stop: bool = False, **settings) -> tuple[int, str]:
    """The status of the command and what it printed; `stop`: SIGTERM comes when it has validated for the first time."""
    # Programs are kept in the bucket.
    kept = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_LOG_COMPILES": "true"}
    environment = os.environ | kept
    del environment["JAX_COMPILATION_CACHE_DIR"]
    run = [*without_torch(command(config, workdir, **settings)), *flags]
    text = ""
    with subprocess.Popen(run, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            text += line
            if stop and "update 2: validation loss" in line:
                process.send_signal(signal.SIGTERM)
    return process.returncode, text


def test_a_run_that_is_stopped_continues_and_is_scored_and_exported(config, home, tmp_path):
    work, whole = home / "work", home / "whole"
    status, text = ended(config, work, stop=True, updates=300)
    assert status == 0 and "Traceback" not in text, text
    saved = int(re.search(r"stopped by SIGTERM after update (\d+), which is saved: the same command", text)[1])
    assert "cache hit for 'jit_train_step'" not in text

    status, text = ended(config, work, updates=saved + 2, profile_steps=f"{saved + 1},{saved + 1}")
    assert status == 0 and f"continuing from update {saved} in" in text and "Traceback" not in text, text
    assert "cache hit for 'jit_train_step'" in text
    assert list((work / "compilation_cache").glob("jit_train_step-*"))
    assert [file for file in work.glob("profile/plugins/profile/*/*.xplane.pb") if file.stat().length > 1000]

    config.updates = saved + 2
    train.train(config, whole)
    abstract = experiment.load_experiment(config).trainable
    ends = [Checkpoints(folder).restore_trainable(saved + 2, abstract) for folder in (work, whole)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    losses = [scalars(folder / "tensorboard")["valid/loss"][saved + 2] for folder in (work, whole)]
    assert losses[0] == losses[1]

    evaluate.evaluate(config, work)
    report = json.loads((work / "report.json").read_text())
    assert "av_clean" in json.dumps(report) and (work / "report.html").exists()
    assert len((last_folder(work) / "av_clean.tsv").read_text().splitlines()) == 6
    to_hf.export(work, str(tmp_path / "export"), step="latest")
    assert (tmp_path / "export" / "adapter" / "adapter_model.safetensors").exists()


def test_shards_are_written_there_as_on_a_disk(prepared, home, tmp_path):
    """With the encoder and its centres there too."""
    for path in [*(prepared / "encoder").iterdir(), prepared / "kmeans"]:
        epath.Path(path).copy(home / path.relative_to(prepared))
    inputs = {"encoder": home / "encoder", "kmeans": home / "kmeans"}
    prepare(options(prepared, tmp_path / "shards", **inputs))
    for _ in range(2):  # the second time, all is there
        prepare(options(prepared, home / "prepared", **inputs))
    expected = contents(tmp_path / "shards")
    store = tensorstore.KvStore.open(key_value_store(home / "prepared")).result()
    found = {key.decode(): store.read(key).result().value for key in store.list().result()}
    assert found == expected and any("array_record" in name for name in found)


def test_the_server_knows_generations(home):
    """Else it would show nothing of what depends on them: that no writer overwrites what another has just written."""
    store = tensorstore.KvStore.open(key_value_store(home / "generations")).result()
    first = store.write("a", b"1").result()
    second = store.write("a", b"2", if_equal=first.generation).result()
    assert store.write("a", b"3", if_equal=first.generation).result().generation != second.generation
    assert store.read("a").result().value == b"2"


def test_what_another_library_writes_is_seen(home):
    folder = home / "listed"
    (folder / "ours").write_text("1")
    assert [path.name for path in folder.iterdir()] == ["ours"]
    store = tensorstore.KvStore.open(key_value_store(folder)).result()
    store.write("theirs", b"2").result()
    store.write("below/theirs", b"3").result()
    assert sorted(path.name for path in folder.iterdir()) == ["below", "ours", "theirs"]
    assert (folder / "theirs").exists() and (folder / "below").is_dir() and (folder / "below" / "theirs").exists()


def test_names_are_no_patterns(home):
    for name in ("run*", "run 1", "[ab]", "a"):
        (home / "named" / name / "file").write_text("1")
    (home / "named" / "run*").rmtree()
    (home / "named" / "[ab]" / "file").unlink()
    assert sorted(path.name for path in (home / "named").iterdir()) == ["a", "run 1"]


def test_a_bucket_is_asked_whether_it_can_be_written(config, home, tmp_path):
    check_writable(home / "new", folder=True)
    check_writable(home / "new" / "file")
    assert not list(home.glob("new*"))
    sentence = f"cannot be written (there is no bucket of this name), {RIGHTS}"
    for path, folder in (("gs://another/đường dẫn", True), ("gs://another/file", False)):
        with pytest.raises(InputError, match=f"^--output {re.escape(f'{path}: {sentence}')}$"):
            check_writable(path, "--output", folder)
    with pytest.raises(
        InputError, match=r"^gs://viavsp/a#1: holds a # or a \?, which end a name in a bucket's address"
    ):
        check_writable("gs://viavsp/a#1", folder=True)
    with pytest.raises(InputError, match=re.escape(f"--workdir gs://another/run: {sentence}")):
        train.train(config, "gs://another/run")
    config.data.path = "gs://another/shards"
    with pytest.raises(InputError, match=r"^gs://another/shards: no such folder"):
        train.train(config, home / "none")


@pytest.mark.parametrize("refused", ["workdir", "llm.path", "data.path"])
def test_an_account_without_rights_is_told(home, folders, tmp_path, refused):
    """With one sentence, before the first update, whichever folder it is."""
    config, places = small_config(*folders), {refused: f"gs://{gcs.CLOSED}/run"}
    status, text = ended(config, places.pop("workdir", tmp_path), **places)
    last = text.splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and last.count("error: ") == 1
    assert gcs.REFUSAL in last and RIGHTS in last
    assert "Traceback" not in text and "update 1" not in text, text


def test_without_the_package_it_is_named():
    code = """
        import sys
        sys.modules["gcsfs"] = None
        from etils import epath
        from viavsp_jax.runtime.errors import reported_to_user
        with reported_to_user():
            epath.Path("gs://bucket/run").exists()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith(
        "error: gs:// paths need the package gcsfs, which is not installed: pip install gcsfs"
    )


def test_an_export_is_not_written_to_a_bucket(capsys):
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["to_hf", "--workdir", "run", "--output", "gs://viavsp/export"])
        to_hf.main()
    assert "error: --output gs://viavsp/export: expected a folder on a disk" in capsys.readouterr().err


def test_troubles_of_the_libraries():
    """As they word them; what is no bucket's trouble is left alone."""
    cpp = "PERMISSION_DENIED: no access [http_response_body='{}'] [http_response_code='403']"
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = ValueError(cpp)
    assert bucket_trouble(wrapped) == "PERMISSION_DENIED: no access"
    assert bucket_trouble(google.api_core.exceptions.Forbidden("no access")) == "403 no access"
    for other in (
        ValueError("NOT_FOUND: no such array"),
        FileNotFoundError("b/name"),
        OSError("Forbidden"),
        ImportError(),
    ):
        assert bucket_trouble(other) is None
