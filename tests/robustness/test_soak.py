"""What tests/stress/soak.py calls wrong: anything that is not equal, and a process that grows."""

import json
import subprocess
import sys

import matplotlib
import pytest

from tests.stress import soak, soak_figure

RUN = {"train/loss": {1: 2.0, 2: 1.5}, "valid/loss": {2: 1.6, 4: 1.4}, "av_clean.tsv": "a", "adapter.safetensors": "b"}


@pytest.mark.parametrize("name", RUN)
def test_what_is_not_equal_is_found(name):
    other = {2: 1.5000001} if isinstance(RUN[name], dict) else "c"
    assert soak.differences(RUN, RUN) == []
    assert soak.differences(RUN, RUN | {name: other}) == [name]


def test_only_a_validation_may_be_missing():
    """That of an update at which the run was told to stop."""
    assert soak.differences(RUN, RUN | {"valid/loss": {4: 1.4}}) == []
    assert soak.differences(RUN, RUN | {"train/loss": {2: 1.5}}) == ["train/loss"]


@pytest.mark.parametrize(
    ("name", "sizes", "grows"),
    [
        ("rss_mb", [400, 600, 900, 1000, 1050, 990, 1000, 1020, 1010], False),
        ("rss_mb", [400, 600, 900, 1000, 1050, 1100, 1150, 1200, 1250], True),
        ("threads", [5, 40, 60, 60, 58, 60, 59, 60, 60], False),
        ("files", [5, 11, 11, 11, 11, 11, 12, 12, 13], True),
    ],
)
def test_a_process_that_grows_is_found(name, sizes, grows):
    steady = {"rss_mb": 100, "threads": 10, "files": 10, "temporary": 3}
    totals = soak.Totals(sizes=[steady | {name: size} for size in sizes])
    assert bool(totals.growth()) == grows


def test_a_process_knows_its_size(tmp_path):
    """Measured in a process of its own: in one that ran other tests, 64 MB may come out of what those gave back."""
    script = f"""if True:
        from tests.stress import resident
        before = resident.size()
        with open({str(tmp_path / "file")!r}, "w", encoding="utf-8"):
            ballast = b"x" * (64 << 20)
            now = resident.size()
        print(now["files"] - before["files"], now["rss_mb"] - before["rss_mb"])
    """
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert grown[0] == "1" and 60 <= int(grown[1]) <= 70


def test_the_figure_shows_memory_and_kills(tmp_path):
    lines = [{"minutes": n, "kills": {"start": n, "notice": 1}, "size": {"rss_mb": 1000 + n}} for n in range(1, 5)]
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        soak_figure.draw(tmp_path / "rounds.jsonl", tmp_path / "soak.svg")
    text = (tmp_path / "soak.svg").read_text()
    for words in ("memory of the process", "at the start: 10", "SIGTERM: 4"):
        assert words in text
    assert "at work" not in text
