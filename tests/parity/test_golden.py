"""Everything recorded of the reference's real code, through scripts/check_golden.py, and that the script can fail."""

import collections
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
from places import GOLDEN, GOLDEN_OPEN, ROOT

from tests.parity import encoder_training, open_corpus
from tests.parity.areas import AREAS, OPEN_AREAS, leftover_checks, rows
from tests.parity.rows import Golden

OTHERS = re.compile(r"(^|[/_])(mha|postln_add)(?=[/_.])")


def check(folder, *options):
    command = [sys.executable, ROOT / "scripts" / "check_golden.py", "--data", folder, *options]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as users run it
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def passed(run):
    """The lines of the table, none of which says that a comparison failed."""
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    lines = [line for line in run.stdout.splitlines() if line.split()]
    assert not [line for line in lines if "FAIL" in line]
    return lines


def compared(lines, area):
    return len([line for line in lines if line.split()[0] == area and " pass " in line])


def test_recordings(copy):
    """One encoder and one language model of those recorded, in all areas but the one that takes longest.

    The other encoder: test_avhubert.py; gradients of the trained one: test_avhubert_training.py; the other language
    model's kind: test_llm_kinds.py.
    """
    index = json.loads((copy / "INDEX.json").read_text())
    for name in [name for name in index["files"] if OTHERS.search(name)]:
        del index["files"][name]
        (copy / name).unlink(missing_ok=True)
    shutil.rmtree(copy / "avsp" / "llm_mha")
    (copy / "INDEX.json").unlink()
    (copy / "INDEX.json").write_text(json.dumps(index))
    areas = [area for area in AREAS if area != "encoder"]
    found = list(rows(Golden(copy), areas))
    assert not [row for _, row in found if row.compared and not row.passed]
    counts = collections.Counter(area for area, row in found if row.compared)
    assert all(counts[area] > 5 for area in areas)


def test_open_recordings():
    """All areas, told by what the folder lists; nothing is left out."""
    found = list(rows(Golden(GOLDEN_OPEN)))
    assert not [row for _, row in found if not row.passed or not row.compared]
    assert {area for area, _ in found} == {*OPEN_AREAS}


def test_what_open_recordings_are_left():
    golden = Golden(GOLDEN_OPEN)
    golden.arrays("hf_avhubert/inputs.npz")
    list(open_corpus.checks(golden))
    left = {row.what for row in leftover_checks(golden)}
    assert {"hf_avhubert/outputs_av.npz", "hf_avhubert/inputs.npz[audio_long]"} <= left
    assert not [name for name in left if name.startswith("vicocktail/features.npz")]


@pytest.mark.full
def test_nothing_recorded_is_left_out():
    """But for inputs and the reference's own model."""
    table = passed(check(GOLDEN))
    assert int(table[-1].split()[0]) > 300 and compared(table, "encoder") > 5
    left = {line.split("  -  ")[1].strip() for line in table if "  -  " in line}
    assert {" ".join(line.split()[:2]) for line in left} == {
        "kmeans/centers.npz (absent)",
        "kmeans/model_km_attributes.json (absent)",
        "labels by",
        "utt0 before",
        "utt1 before",
    }


@pytest.fixture
def copy(tmp_path):
    """The recordings, to be changed: links to them."""
    for path in GOLDEN.rglob("*"):
        target = tmp_path / path.relative_to(GOLDEN)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return tmp_path


def replace(folder, name, write):
    """Writes another file in place of a link and lists it as if it had been recorded so."""
    (folder / name).unlink()
    write(folder / name)
    index = json.loads((folder / "INDEX.json").read_text())
    index["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "INDEX.json").unlink()
    (folder / "INDEX.json").write_text(json.dumps(index))


def failures(folder, area="nf4"):
    run = check(folder, "--only", area)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    return [line for line in run.stdout.splitlines() if "FAIL" in line]


def test_one_other_number_fails(copy):
    arrays = dict(np.load(GOLDEN / "nf4" / "nf4.npz"))
    for array in ("w0.packed", "w1.absmax", "w2.dequantized_fp16"):
        arrays[array] = arrays[array].copy()
        arrays[array].flat[arrays[array].size // 2] += 1
    replace(copy, "nf4/nf4.npz", lambda path: np.savez(path, **arrays))
    lines = failures(copy)
    assert [line.split()[:5] for line in lines] == [["nf4", "1.0e+00", "exact", "FAIL", f"w{i}"] for i in range(3)]


@pytest.mark.parametrize("name, changed, passes", [
    ("layers.0.fc1.weight", 0.5e-4, True),
    ("layers.0.fc1.weight", 2e-4, False),
    ("layers.0.self_attn.k_proj.bias", 0.5e-4, True),  # of the weight's largest
    ("layers.0.self_attn.k_proj.bias", 2e-4, False),
    ("video.resnet.trunk.layer1.0.bn1.bias", 2e-3, True),  # what rounding may do
    ("video.resnet.trunk.layer1.0.bn1.bias", 0.1, False),
    ("video.resnet.trunk.layer1.0.bn1.bias", np.nan, False),
])  # fmt: skip
def test_one_other_value_of_a_gradient(name, changed, passes):
    """Changed by so much of the largest."""
    rng = np.random.default_rng(0)
    recorded = {name: rng.normal(size=64), "layers.0.self_attn.k_proj.weight": rng.normal(size=(64, 64))}
    if name.endswith("k_proj.bias"):
        recorded[name] *= 1e-9
    largest = np.abs(recorded[encoder_training.unit(name)]).max()
    ours = {name: recorded[name] + changed * largest * (np.arange(64) == 32)}
    assert encoder_training.gradient_row(name, ours, recorded).passed == passes


def test_missing_and_changed_files_fail(copy):
    (copy / "media" / "info.json").unlink()
    (copy / "train" / "tri_stage_table.json").unlink()
    (copy / "train" / "tri_stage_table.json").write_text("{}")
    (copy / "nf4" / "nf4.json").unlink()
    (copy / "train" / "bn_train_trace.npz").unlink()
    (copy / "avsp" / "gqa_sample0_encoder_grads.npz").unlink()
    found = [row for _, row in rows(Golden(copy), ["nf4"]) if row.compared and not row.passed]
    assert [f"{row.what} ({row.note})" for row in found] == [
        "avsp/gqa_sample0_encoder_grads.npz (missing)",
        "media/info.json (missing)",
        "nf4/nf4.json (missing)",
        "train/bn_train_trace.npz (missing)",
        "train/tri_stage_table.json (not the file that was recorded)",
        f"the rest (FileNotFoundError: {copy / 'nf4' / 'nf4.json'} is missing)",
    ]


@pytest.mark.parametrize("array", ["audio_open_1", "audio_reference_0"])
def test_one_other_number_of_the_open_corpus(tmp_path, array):
    for path in (path for path in GOLDEN_OPEN.rglob("*") if path.is_file()):
        (tmp_path / path.relative_to(GOLDEN_OPEN)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(GOLDEN_OPEN)).symlink_to(path)
    arrays = dict(np.load(GOLDEN_OPEN / "vicocktail" / "features.npz"))
    arrays[array][-1, 5] += 1e-4
    replace(tmp_path, "vicocktail/features.npz", lambda path: np.savez(path, **arrays))
    found = [row for _, row in rows(Golden(tmp_path), ["open_corpus"]) if not row.passed]
    assert len(found) == 1 and ("floats" in found[0].what) == ("open" in array)


@pytest.fixture
def status(monkeypatch):
    """A function that runs the script's command in this process; its status."""

    def run(*options):
        monkeypatch.setattr("sys.argv", ["check_golden.py", *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "check_golden.py"))["main"]()
        return ended.value.code

    return run


def test_a_table_without_failures_ends_with_status_0(status, capsys):
    assert status("--data", GOLDEN, "--only", "nf4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert compared([line for line in lines if line.split()], "nf4") > 5


def test_areas_are_those_of_the_layout(status, capsys):
    assert status("--data", GOLDEN_OPEN, "--only", "nf4") == 2
    assert f"--only nf4: expected one of {', '.join(OPEN_AREAS)}" in capsys.readouterr().err


def test_a_folder_without_recordings_is_refused(status, tmp_path, capsys):
    assert status("--data", tmp_path) == 2
    assert f"{tmp_path} holds no INDEX.json" in capsys.readouterr().err
