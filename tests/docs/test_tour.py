"""docs/tour.ipynb runs from top to bottom, and its stored outputs are those of a whole run."""

import json
import os
import re
import subprocess
import sys

import pytest
from places import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"
# One line of each section; the same on every machine.
PRINTED = (
    "projector and adapters, trainable     57,472 weights",
    "train: 16 clips listed, 0 skipped",
    "spk00_000000: 'anh ấy vẫn bán bàn với bạn', 1.68 s",
    "video          uint8[42, 96, 96]",
    "audio input    float32[42, 104]",
    "last layer     float32[42, 128]",
    "centres        float32[40, 128]",
    "shards/av_clean: split test: 4 clips, 0 skipped",
    "features       float32[4, 256, 128]",
    "label_index    int32[4, 128]",
    "projector/kernel                 float32[128, 128]",
    "train: hypotheses int32[2, 5, 48]: clips, beams, tokens",
    "  reference     cuối tháng ông nội muốn nấu hai bát canh ngon",
    "test: hypotheses int32[2, 5, 48]: clips, beams, tokens",
)


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return json.loads(TOUR.read_text(encoding="utf-8"))["cells"]


def printed_by(cells: list[dict]) -> str:
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")


def losses(text: str) -> tuple[float, float]:
    """Of the first and of the last update."""
    first, last = re.search(r"training loss   ([\d.]+) in update 1, ([\d.]+) in update 40", text).groups()
    return float(first), float(last)


def test_it_runs(cells, tmp_path):
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "tour.py").write_text(code, encoding="utf-8")
    # Here the programs run so often that it pays to optimise them a little.
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:" + os.environ["PYTHONPATH"],
        "MPLBACKEND": "agg",
        "PYTHONUTF8": "1",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_backend_optimization_level=1",
    }
    command = [sys.executable, "tour.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [line for line in PRINTED if line not in done.stdout.splitlines()] == []
    first, last = losses(done.stdout)
    assert last < first / 4
    assert [path.name for path in tmp_path.iterdir()] == ["tour.py"]


def test_outputs_are_stored(cells):
    """Of one run of all cells, in their order, without errors."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code[1:])  # the first one imports
    for cell in code:
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"]
        pictures = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert len(pictures) == "".join(cell["source"]).count("plt.show()")
    text = printed_by(code)
    assert [line for line in PRINTED if line not in text.splitlines()] == []
    first, last = losses(text)
    assert last < first / 4


def test_it_tells_nothing_of_the_machine_and_stays_small(cells):
    assert TOUR.stat().st_size < 400_000
    outputs = [
        {**output, "data": {kind: x for kind, x in output.get("data", {}).items() if kind != "image/png"}}
        for cell in cells
        for output in cell.get("outputs", [])
    ]
    # What begins with a slash: an absolute path.
    assert re.findall(r"(?<![\w.])/\w[^\s\"']*", json.dumps(outputs, ensure_ascii=False)) == []


def test_links_lead_somewhere(cells):
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    assert links
    assert [link for link in links if not (TOUR.parent / link).exists()] == []
