"""Compilation for TPUs that are not there, by the command, on the demo's language model."""

import json
import math
import os
import re
import subprocess
import sys

import jax
import pytest
from places import GOLDEN, ROOT
from small_run import DEMO_LLAMA

from convert.avhubert import abstract_params
from viavsp_jax import check, encoder_folder, state
from viavsp_jax.aot import compile as compile_
from viavsp_jax.aot import cycles
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig

# Where decoding is not asked about: few tokens of one beam compile sooner.
LITTLE_TO_DECODE = ("--config.evaluate.decoding.num_beams=1", "--config.evaluate.decoding.max_new_tokens=8")
DEMO_ENCODER = DEMO_LLAMA.parent / "avhubert"


# Nobody runs these programs: with the encoder it takes 58 in place of 164 s, for the same counts.
HASTY = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1", "JAX_MEMORY_FITTING_EFFORT": "-1"}


def run(*arguments: str, config: str = "demo", environment: dict[str, str] = HASTY) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "viavsp_jax.main", f"--config=configs/{config}.py", "--mode=compile", *arguments]
    command += ["--config.ctc.weight=0"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[str, dict]:
    """What the command prints and writes about rows of 256 positions on 4 chips."""
    output = tmp_path_factory.mktemp("compile") / "report.json"
    result = run(
        "--topology=v5e:2x2", f"--output={output}", f"--config.llm.path={DEMO_LLAMA}", "--config.data.rows=4",
        "--config.evaluate.rows=4", "--config.updates=1000",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(output.read_text())


def test_report(small):
    text, report = small
    assert report["fits"] and report["devices"] == 4 and report["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    for name in ("train", "decode"):
        part = report[name]
        assert part["fits"] and 0 < part["hbm_used_fraction"] < 0.01
        assert part["hbm_used_fraction"] == pytest.approx(
            sum(part["hbm_bytes"].values()) / report["hbm_bytes_per_device"]
        )
        assert 0.3 < part["useful_flops_fraction"] < 1
        seconds = part["model_flops_per_step"] / 4 / 197e12
        assert part["step_seconds_at_peak"] == pytest.approx(seconds)
        by_kind = part["compiler_ms_by_kind"]
        assert part["compiler_ms"] == pytest.approx(sum(by_kind.values())) and by_kind.keys() == cycles.KINDS.keys()
        assert part["compiler_share_of_peak"] == pytest.approx(1e3 * seconds / part["compiler_ms"])
        assert part["hours_by_compiler"] == pytest.approx(part["steps"] * part["compiler_ms"] / 3.6e6)
    assert report["train"]["steps"] == 1000 and report["decode"]["steps"] == 12_800 / 4
    assert "v5e:2x2: 4 devices with 15.75 GiB and 197 TFLOP/s each" in text
    assert text.count("yes") == 2


def test_where_the_time_goes(small):
    text, report = small
    for name in ("train", "decode"):
        part = report[name]
        used = {kind for kind, ms in part["compiler_ms_by_kind"].items() if ms}
        assert {"products", "adapters", "attention", "head", "elementwise", "copies"} < used and "encoder" not in used
        for kind in used:
            assert f"\n  {cycles.KINDS[kind]} " in text
        assert len(part["dearest"]) == compile_.DEAREST
        spent = [one["ms"] for one in part["dearest"]]
        assert spent == sorted(spent, reverse=True) and sum(spent) < part["compiler_ms"]
        for one in part["dearest"]:
            assert one["runs"] >= 1 and one["kind"] in used and one["name"] and "{" not in one["result"]
        assert any(one["source"].startswith("models/") for one in part["dearest"])
        lines = text[text.index(f"most of a step, {name}:") :].splitlines()[2 : 2 + compile_.DEAREST]
        assert [line.split()[0] for line in lines] == [f"{ms:.2f}" for ms in spent]
    assert report["train"]["compiler_ms_by_kind"]["collectives"] > 0
    assert "encoder " not in text.split("most of a step")[0]


def test_what_is_sent_are_the_gradients(small):
    """float32, of adapters and projector: nothing else leaves a device, nothing at all when it decodes."""
    _, report = small
    adapters = 4 * 16 * (3 * 128 + 128 + 64 + 64)
    projector = 128 * 128 + 128
    assert report["train"]["collective_bytes_by_kind"] == {"all-reduce": 4 * (adapters + projector)}
    assert report["train"]["collective_bytes_per_step"] == 4 * (adapters + projector)
    assert report["decode"]["collective_bytes_per_step"] == 0


def test_rows_are_packed_from_typical_clips(small):
    """An utterance takes some 45 speech and 19 label positions; a row of 256 holds 3 of them and 15 of instruction."""
    _, report = small
    train = report["train"]
    assert 2.8 * 4 < train["clips_per_step"] <= 3.2 * 4
    assert train["real_positions"] == pytest.approx((15 + train["clips_per_step"] / 4 * 64.2) / 256, rel=0.02)
    assert train["clips_seen"] == round(1000 * train["clips_per_step"])


@pytest.mark.full
def test_an_encoder_that_is_trained(tmp_path):
    """Sent are all gradients, or in their place parts of them and of the weights; every device has all moments' sum."""
    output = tmp_path / "report.json"
    result = run(
        "--topology=v5e:2x2", f"--output={output}", f"--config.llm.path={DEMO_LLAMA}", "--config.data.rows=4",
        "--config.evaluate.rows=4", "--config.encoder.train=true", f"--config.encoder.path={DEMO_ENCODER}",
        "--config.data.row.frames=228", "--config.data.row.clips=3", *LITTLE_TO_DECODE,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    assert report["fits"] and report["train"]["compile_seconds"] > 0
    config = encoder_folder.read_config(DEMO_ENCODER)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_params(config)))
    sent = report["train"]["collective_bytes_by_kind"]
    assert size < report["train"]["collective_bytes_per_step"] < 3 * size, sent
    assert report["train"]["compiler_ms_by_kind"]["encoder"] > report["train"]["compiler_ms_by_kind"]["products"]
    # Where every clip is 76 of 76 frames, most of what is computed is of use: the encoder's second forward pass is not.
    assert 0.4 < report["train"]["useful_flops_fraction"] < 1


@pytest.mark.full
@pytest.mark.parametrize(("recipe", "shape"), [("qwen3", "qwen3-4b"), ("llama32", "llama-3.2-3b")])
def test_a_recipe_fits_the_slice_it_names(recipe, shape, tmp_path):
    """By the compiler's full effort, as the numbers in the recipe's docstring: some minutes each on two cores."""
    output, path = tmp_path / "report.json", f"configs/shapes/{shape}"
    as_users_do = {"XLA_FLAGS": ""}
    result = run(
        "--topology=v5e:2x4", f"--output={output}", f"--config.llm.path={path}", config=recipe, environment=as_users_do
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    documented = (ROOT / "configs" / f"{recipe}.py").read_text()
    for name in ("train", "decode"):
        # Room is left for what XLA does not count: the batch that comes next, and gaps between arrays.
        assert report[name]["fits"] and report[name]["hbm_used_fraction"] < 0.95
        assert f"{100 * report[name]['hbm_used_fraction']:.1f} %" in documented, result.stdout


def test_a_config_that_cannot_fit(tmp_path):
    output = tmp_path / "report.json"
    result = run(
        "--topology=v5e:1x1", f"--output={output}", f"--config.llm.path={DEMO_LLAMA}", "--config.lora.rank=300000",
        *LITTLE_TO_DECODE,
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stderr
    report = json.loads(output.read_text())
    assert not report["fits"] and not report["train"]["fits"]
    # Adapters and what Adam keeps of them, 3 x 12 GB.
    assert report["train"]["hbm_used_fraction"] > 3 * 4 * 1.2e6 * 640 / 2**30 / 15.75
    assert report["train"]["compiler_ms"] is None and report["decode"]["compiler_ms"] > 0
    assert "RESOURCE_EXHAUSTED" in report["train"]["refused"] and "train refused: RESOURCE_EXHAUSTED" in result.stdout


def test_the_check_tells_memory_and_hours(small, folders, tmp_path):
    """For the chips that are asked for, which need not be here; a set-up that does not fit them has a fault."""
    report = small[1]
    used, hours = (report["train"][name] for name in ("hbm_used_fraction", "hours_by_compiler"))
    assert check._words(report).startswith(f"v5e:2x2: train {used:.1%}, decode 0.")
    assert (
        check._words(report).endswith(f" of the memory of a chip, {hours:.2f} h") and check._check_fits(report) is None
    )
    result = run(
        "--mode=check", "--topology=v5e:1x1", f"--workdir={tmp_path}", f"--config.llm.path={folders[0]}",
        f"--config.data.path={folders[1]}", "--config.data.train=('av_clean',)", "--config.data.feature_width=12",
        "--config.lora.rank=300000", *LITTLE_TO_DECODE,
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stderr
    shown = " ".join(result.stdout.split())
    assert "devices 1 of kind TPU v5 lite, mesh: data 1" in shown and "memory and hours v5e:1x1: train 3" in shown
    assert re.search(r"faults: 1. train needs 3\d\d% of the 15.75 GiB of a chip of v5e:1x1: try --config.remat", shown)


def test_without_a_topology():
    result = run()
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: --topology is not set, which --mode=compile needs"


def test_size_in_a_refusal():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.52G of 15.75G hbm. Exceeded by 4.77G."
    assert compile_.refused_size(message) == 20.52 * 2**30
    assert compile_.refused_size("RESOURCE_EXHAUSTED") == 0


def test_the_model_without_a_folder():
    """As many weights as the reference's, whose vocabulary is smaller by three."""
    recorded = json.loads((GOLDEN / "keys" / "viavsp_llm_fairseq_full_unfiltered.json").read_text())["keys"]
    frozen, trainable = (
        sum(math.prod(shape) for name, (shape, _) in recorded.items() if name.startswith("decoder.") and wanted(name))
        for wanted in (lambda name: "lora" not in name, lambda name: "lora" in name)
    )
    _, ours, ours_frozen = state.abstract_model(ModelConfig(compile_.VINALLAMA, LoRAConfig(), 1024, "bfloat16"))
    assert sum(x.size for x in jax.tree.leaves(ours_frozen)) == frozen + 2 * 3 * 2560
    assert sum(x.size for x in jax.tree.leaves(ours["llm"])) == trainable
