"""The commands of README.md and docs/ are run in a folder with small things under the names used there.

PLACEHOLDERS says what is changed in them, ELSEWHERE which are not run here. configs/final.py is of a size for tests,
and what lies outside this project is stood in for: pip, gcloud and the like. Python is one that has imported the large
libraries already (tests/helpers/warm_python.py), which halves the time.
"""

import lzma
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from places import GOLDEN, ROOT
from real_videos import SPEECH, write_video
from small_corpus import write_corpus

from convert import from_fairseq
from convert.checkpoints import read_fairseq

# In the order of a reader who does all of it.
PAGES = (
    *("docs/preparing.md", "docs/tpu.md", "docs/checkpoints.md", "docs/gpu.md", "docs/transcribing.md", "README.md"),
    *("docs/performance.md", "docs/space.md", "docs/reliability.md", "docs/vicocktail.md"),
)
# Words in code blocks that stand for something of the reader's own.
PLACEHOLDERS = {"gs://BUCKET": "bucket", "data/new_shards": "data/shards", "--layer 12": "--layer 2",
                "--num_clusters 1000": "--num_clusters 8",
                "--fraction 0.01": "--fraction 1.0", "--device cuda": "--device cpu", '"cuda"': '"cpu"',
                "cd viavsp_jax && ": "", "=data/avhubert": "=avhubert_theirs",
                '"0.0.0.0"': '"127.0.0.1", "--port", "PORT"'}  # fmt: skip
# What takes minutes, and where it is done in small or in full.
ELSEWHERE = {
    r"^scripts/demo\.sh": "by hand, from a fresh clone; the tests of its stages are theirs",
    r"^scripts/test\.sh": "this is one of its tests",
    r"scripts/check_golden\.py": "test_golden.py",
    r"--mode=compile": "test_compile.py",
    r"--runner ray": "test_shards_ray.py",
    r"^scripts/tpu\.sh": "test_tpu_script.py",
    r"^scripts/vicocktail\.sh": "by hand, since it downloads; test_open_corpus.py does the same with small archives",
}
WARM = ROOT / "tests" / "helpers" / "warm_python.py"
# Programs that are not this project's: they say what they were asked, and copy what has to be there later.
STAND_INS = {
    "python": f"""
        case "$1" in -m|-c) exec {sys.executable} -S {WARM} "$(dirname "$0")/warm" "$@";; esac
        exec {sys.executable} "$@"
    """,
    "pip": "exit 0",
    "tensorboard": "exit 0",
    "ray": "exit 0",
    "gcloud": 'shift 3; mkdir -p "${@: -1}"; exec cp -rLf "$@"',  # storage cp -r
}
SNIPPET = """
import numpy as np, tensorflow_datasets as tfds
video, audio = np.zeros((8, 96, 96), np.uint8), np.random.default_rng(0).integers(-900, 900, 5120).astype(np.int16)
"""


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The commands of a page, one line each, without comments."""
    joined = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()]
    return [re.sub(r"\s+", " ", line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A folder that looks like the project's own, with the files that the documentation speaks of."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("viavsp_jax", "convert", "scripts", "benchmarks", "tests", "setup.py", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copy(ROOT / "tests" / "helpers" / "docs_final.py", folder / "configs" / "final.py")
    write_programs(folder / ".venv" / "bin", folder)
    write_corpus(folder / "data" / "raw" / "vasr", {"train": [7, 12, 5, 9, 12, 8], "valid": [6, 5], "test": [6, 10]})
    (folder / "theirs.pt").write_bytes(lzma.decompress((GOLDEN / "avhubert" / "large_tiny.pt.xz").read_bytes()))
    from_fairseq.convert(folder / "theirs.pt", folder / "avhubert_theirs")  # of which checkpoint_best.pt is
    write_narrow(folder / "theirs.pt", folder / "large_vox_iter5.pt")
    best = lzma.decompress((GOLDEN / "avsp" / "checkpoint_best_gqa.pt.xz").read_bytes())
    (folder / "checkpoint_best.pt").write_bytes(best)
    shutil.copy(GOLDEN / "kmeans" / "tiny.km", folder / "model.km")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "vinallama-2.7b").symlink_to(GOLDEN / "avsp" / "llm_gqa")
    (folder / "recordings").mkdir()
    shutil.copy(SPEECH, folder / "recordings" / "speech.mp4")
    (folder / "transcripts.csv").write_text("id,transcript,split\nspeech,xin chào,train\n")
    rng = np.random.default_rng(0)
    for name in ("clip.mp4", "talk.mp4", "interview.mkv"):
        mouths = rng.integers(0, 255, (10, 96, 96, 1), np.uint8).repeat(3, 3)
        sound = rng.normal(0, 900, 6400).astype(np.int16)
        write_video(folder / name.replace("mp4", "mov"), mouths, samples=sound, codec="mpeg4")
        (folder / name.replace("mp4", "mov")).rename(folder / name)
    (folder / "runs").mkdir()
    (folder / "model").symlink_to("exported")
    for name, source in (("final", "../bucket/final"), ("tuned", "../bucket/tuned"), ("demo", "../bucket/final")):
        (folder / "runs" / name).symlink_to(source)
    return folder


@pytest.fixture(scope="module", autouse=True)
def warm_python(place):
    """The process that commands are forks of."""
    address = place / ".venv" / "bin" / "warm"
    command = [sys.executable, WARM, "serve", os.path.relpath(address)]  # an address has at most 107 bytes
    with subprocess.Popen(command, env=environment(place), start_new_session=True) as server:
        try:
            while not address.exists():
                assert server.poll() is None
                time.sleep(0.1)
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def done_before() -> set[str]:
    """Commands that an earlier page had already."""
    return set()


def write_narrow(source: pathlib.Path, path: pathlib.Path) -> None:
    """A checkpoint with a few of its picture channels: with all of them an update of the encoder takes minutes."""
    read, few = read_fairseq(source), {64: 4, 128: 6, 256: 8, 512: 10}
    for name, weight in read.model.items():
        if name.startswith(from_fairseq.RESNET):
            read.model[name] = weight[tuple(slice(few.get(size, size)) for size in weight.shape)].clone()
        elif name == "feature_extractor_video.proj.weight":
            read.model[name] = weight[:, : few[512]].clone()
    torch.save({"cfg": read.cfg, "model": read.model}, path)


def write_programs(folder: pathlib.Path, root: pathlib.Path) -> None:
    """This Python and the stand-ins; everything counts as installed."""
    folder.mkdir(parents=True)
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    parts = "cat setup.py constraints.txt | cksum | tr -d ' '"
    stamp = subprocess.run(["bash", "-c", parts], cwd=root, capture_output=True, text=True).stdout.strip()
    for extra in ("prepare", "tpu", "app", "demo"):
        (folder.parent / f".installed-{extra}-{stamp}").touch()


def run(place: pathlib.Path, command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, timeout=600)


def environment(place: pathlib.Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{place / '.venv' / 'bin'}:/usr/bin:/bin", "PYTHONPATH": str(place), "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def serve(place: pathlib.Path, command: list[str]) -> None:
    """Starts the page on port PORT of the command, asks for it, stops it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [word.replace("PORT", str(port)) for word in command]
    with subprocess.Popen(command, cwd=place, env=environment(place), stderr=subprocess.PIPE, text=True) as server:
        try:
            for _ in range(240):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                        assert answer.status == 200
                    break
                except OSError:
                    assert server.poll() is None, server.stderr.read()
                    time.sleep(0.5)
            else:
                raise AssertionError(f"{command} serves nothing")
        finally:
            server.terminate()


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_as_they_are_written(place, done_before, page):
    for command in commands(page):
        if any(re.search(pattern, command) for pattern in ELSEWHERE):
            continue
        for words, stand_in in PLACEHOLDERS.items():
            command = command.replace(words, stand_in)
        if "viavsp_jax.app" in command:
            serve(place, [*command.split(), "--port", "PORT"])
            continue
        if command in done_before:
            continue
        done_before.add(command)
        start = time.monotonic()
        done = run(place, ["bash", "-euo", "pipefail", "-c", command])
        print(f"{time.monotonic() - start:5.1f} s  {command}")
        assert done.returncode == 0, f"{page}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    for snippet in blocks(page, "python"):
        for words, stand_in in PLACEHOLDERS.items():
            snippet = snippet.replace(words, stand_in)
        if "viavsp_jax.app" in snippet:
            serve(place, ["python", "-c", snippet])
            continue
        done = run(place, ["python", "-c", SNIPPET + snippet])
        assert done.returncode == 0, f"{page}:\n{snippet}\n{done.stderr[-4000:]}"


def test_what_is_run_elsewhere_is_there():
    every = [command for page in PAGES for command in commands(page)]
    for pattern, where in ELSEWHERE.items():
        assert any(re.search(pattern, command) for command in every), pattern
        for name in re.findall(r"test_\w+\.py", where):
            assert list((ROOT / "tests").rglob(name))


def test_every_page_with_commands_is_run():
    pages = {str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
    assert {page for page in pages if commands(page) or blocks(page, "python")} == set(PAGES)


def test_links_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"


def test_paths_of_tests_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for quoted in re.findall(r"`([^`\n]+)`", path.read_text()):
            for target in re.findall(r"(?<![\w/.])tests/[\w./*-]*", quoted):
                assert list(ROOT.glob(target.rstrip("/"))), f"{path.name}: {target}"


def test_messages_that_are_explained_exist():
    """Each quoted part is in a string of the program, as written or between the names in it."""
    files = [*ROOT.glob("viavsp_jax/**/*.py"), *ROOT.glob("convert/**/*.py"), ROOT / "scripts" / "install.sh"]
    # Strings that go on in the next line are joined; names and numbers may be anything.
    code = re.sub(r"['\"]\s*\n\s*f?['\"]", "", "\n".join(file.read_text() for file in files))
    code = re.sub(r"\d+", "#", code)
    known = code + re.sub(r"\{[^{}\n]*\}", "#", code)
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    assert not [row for row in rows if re.sub(r"\d+", "#", row) not in known]
