"""Installed from a wheel, in an empty folder: from nothing to a transcript, with a config of one's own."""

import json
import os
import pathlib
import shutil
import site
import subprocess
import sys
import venv

import pytest
from places import ROOT

OWN = """\
from configs import common, demo


def get_config():
    config = demo.get_config()
    config.data.train = config.evaluate.names = ("av_clean",)
    config.data.rows, config.updates, config.checkpoint.every = common.ROWS, 2, 2
    config.evaluate.rows, config.evaluate.decoding.num_beams, config.evaluate.decoding.max_new_tokens = 2, 2, 6
    return config
"""
FOLDERS = ("viavsp_jax", "convert", "configs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """The programs of an environment with the wheel and all that this Python has, but for this project's own folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, source], check=True)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    subprocess.run([*pip, "--python", folder / "env/bin/python", "install", *offline, wheel], check=True)
    # A line in a .pth file adds a folder, and does not run the .pth files in that, as an editable install has one.
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "env" / "bin"


@pytest.fixture
def run(installed, tmp_path, monkeypatch):
    """A function that runs a program of the environment in an empty folder and gives what it did."""
    monkeypatch.chdir(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def start(program, *arguments):
        command = [installed / program, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return start


def made(result: subprocess.CompletedProcess) -> str:
    """What a program that ended well printed."""
    assert result.returncode == 0, result.stderr
    return result.stdout


def write_own(*, package: bool) -> None:
    """A folder `configs` of somebody's own."""
    pathlib.Path("configs").mkdir()
    pathlib.Path("configs/mine.py").write_text(OWN)
    pathlib.Path("configs/common.py").write_text("ROWS = 1\n")
    if package:
        pathlib.Path("configs/__init__.py").touch()


def files(folder: pathlib.Path) -> set[str]:
    """Of the packages in a folder, by their paths."""
    found = {path for name in FOLDERS for path in (folder / name).rglob("*") if path.is_file()}
    return {path.relative_to(folder).as_posix() for path in found if path.parent.name != "__pycache__"}


def test_every_file_of_the_packages_is_in_it(installed):
    (packages,) = (installed.parent / "lib").glob("python*/site-packages")
    assert files(packages) == files(ROOT)


def test_it_brings_what_it_needs(installed, run):
    places = made(run("python", "-c", f"import {', '.join(FOLDERS)}; print(*({'.__file__, '.join(FOLDERS)}.__file__))"))
    assert all(pathlib.Path(place).is_relative_to(installed.parent) for place in places.split()), places
    assert (installed.parent / "share/viavsp-jax/constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()
    shape = f"{pathlib.Path(places.split()[2]).parent}/shapes/qwen3-4b/config.json"
    assert json.loads(pathlib.Path(shape).read_text())["model_type"] == "qwen3"
    known = {"app": "--max_minutes", "prepare": "kmeans", "train": "--workdir", "transcribe": "--highlight_words"}
    for name, word in known.items():
        assert word in made(run(f"viavsp-{name}", "--help"))


@pytest.mark.parametrize("package", [True, False])
@pytest.mark.parametrize("program", [("viavsp-train",), ("python", "-m", "viavsp_jax.main")])
def test_a_folder_of_configs_of_ones_own(run, program, package):
    """Settings that are asked for and not there are looked up in the table of ours."""
    write_own(package=package)
    pathlib.Path("convert.py").touch()
    result = run(*program, "--config=configs/mine.py", "--config.updats=3")
    assert result.stderr == "error: config.updats is no setting, did you mean config.updates?\n"
    result = run(*program, "--config=configs/mine.py", "--config.data.rows=1", "--mode=compile")
    assert result.stderr == "error: --topology is not set, which --mode=compile needs\n", "the config was read"


@pytest.mark.full
def test_from_nothing_to_a_transcript(run, installed):
    models = pathlib.Path(made(run("python", "-c", "import viavsp_jax; print(*viavsp_jax.__path__)")).strip())
    models /= "demo_models"
    sizes = ["--num_train", 6, "--num_valid", 2, "--num_test", 2, "--workers", 1]
    encoder = ["--manifest", "manifest", "--encoder", models / "avhubert", "--workers", 0, "--device", "cpu"]
    stages = [
        ["demo", "--output", "corpus", *sizes],
        ["manifest", "--data", "corpus", "--output", "manifest"],
        ["kmeans", *encoder, "--output", "kmeans.safetensors", "--layer", 2, "--num_clusters", 9],
        ["shards", *encoder, "--kmeans", "kmeans.safetensors", "--output", "shards", "--modalities", "av"],
    ]
    made(run("viavsp-prepare", *stages[0]))
    # The libraries are imported once for the others.
    code = (
        "import sys, json; from viavsp_jax.prepare.__main__ import main; [main(one) for one in json.loads(sys.argv[1])]"
    )
    made(run("python", "-c", code, json.dumps([[str(word) for word in stage] for stage in stages[1:]])))
    made(run("python", "-m", "convert.from_hf", models / "llama", "--output", "llm", "--dtype", "float32"))
    write_own(package=True)
    settings = ["--config=configs/mine.py", "--workdir=work", "--config.llm.path=llm", "--config.data.path=shards"]
    made(run("viavsp-train", *settings))
    assert "av_clean" in made(run("python", "-m", "viavsp_jax.main", *settings, "--mode=eval", "--step=latest"))
    assert json.loads(pathlib.Path("work/report.json").read_text())["av_clean"]["clips"] == 2
    made(run("python", "-m", "convert.to_hf", "--workdir", "work", "--output", "exported"))
    pathlib.Path("convert").mkdir()
    pathlib.Path("convert/__init__.py").touch()
    clip, *_ = sorted(pathlib.Path("corpus/audio").rglob("*.wav"))
    for model in ("work", "exported"):
        made(run("viavsp-transcribe", clip, "--model", model, "--format", "txt", "--output", model, "--no_vad"))
        assert pathlib.Path(model, f"{clip.stem}.txt").exists()
