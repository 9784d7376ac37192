"""The script of a GPU's figures, with toys on this machine: parts are found, bounded, and cost each other nothing."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import attention, gpu

ROOT = pathlib.Path(__file__).parents[2]


def script(output: pathlib.Path, *flags: str) -> dict[str, gpu.Found]:
    """Runs benchmarks/gpu.sh; what it found."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["benchmarks/gpu.sh", "--tiny", *flags, str(output)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (output / "gpu.md").read_text(encoding="utf-8") in done.stdout
    return json.loads((output / "gpu.json").read_text(encoding="utf-8"))


def test_script(tmp_path):
    found = script(tmp_path, "--only", "attention", "versions", "--seconds=120")
    assert list(found) == ["versions", "attention"] and not any(part["failure"] for part in found.values())
    assert f"python {sys.version.split()[0]}" in found["versions"]["machine"]["versions"]
    differences = {fact: value for fact, value in found["attention"]["facts"].items() if "difference" in fact}
    assert list(differences) == ["largest difference, xla", "largest difference, plain"]
    assert all(float(number) < 1e-5 for value in differences.values() for number in re.findall(r"\d\S*e\S\d+", value))
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert all(value in table for value in differences.values()) and "| attention | xla, calls/s |" in table


@pytest.mark.full
def test_all_parts(tmp_path):
    found = script(tmp_path, "--seconds=1200")
    assert list(found) == [part.name for part in gpu.parts(tiny=True)]
    missing = {part.name for part in gpu.parts(tiny=True) if part.missing}
    assert {name for name, part in found.items() if part["failure"]} == missing
    for part in ("same tokens", "beam search bfloat16"):
        facts = found[part]["facts"]
        assert facts["equal tokens, one clip at a time"] == facts["equal tokens, same batch"] == 1
    assert found["golden"]["rows"] and found["update nf4"]["comparisons"]


def test_a_part_that_fails_is_one_line(tmp_path):
    log = tmp_path / "log"
    broken = gpu.Part("broken", 60, ["-c", "print('first'); raise SystemExit('this | was it')"])
    found = gpu.run(broken, 60, False, log)
    assert found["failure"] == "status 1: this | was it"
    assert "| broken | failed | status 1: this / was it |" in gpu.markdown({"broken": found})
    unknown = gpu.Part("unknown", 60, ["-c", "1 / 0"], quantization="int1")
    assert gpu.run(unknown, 60, False, log) == {"failure": "not in this version"}
    assert gpu.run(broken, gpu.LEAST - 1, False, log) == {"failure": "no time was left"}
    assert log.read_text().count("== ") == 1


def test_a_part_that_hangs_is_stopped_with_its_children_and_keeps_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0)
    hanging = (
        "import pathlib, subprocess, sys, time\n"
        "pathlib.Path(sys.argv[1].removeprefix('--output=')).write_text('{\"facts\": {\"so far\": 1.5}}')\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    found = gpu.run(gpu.Part("hanging", 60, ["-c", hanging]), 3, False, tmp_path / "log")
    assert found["failure"] == "stopped after 3 s" and found["facts"] == {"so far": 1.5}
    state = pathlib.Path("/proc", (tmp_path / "child").read_text(), "stat")
    for _ in range(50):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("its child still runs")


def test_padding_counts_for_nothing_in_differences():
    """A kernel may give anything there."""
    real = np.array([[True, True, False]])
    exact = (np.array([[[1.0], [2.0], [3.0]]]),) * 4
    found = (np.array([[[1.0], [2.5], [9.0]]]), *exact[1:])
    assert attention.largest_difference(found, exact, real).startswith("out 2.5e-01, dq 0.0e+00")
