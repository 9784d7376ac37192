"""Ahead-of-time compilation for TPUs that are not there: does a config fit, and how long would it take?

The programs are those of training and of evaluation. No weights, data or tokenizer are needed: what rows and prompts
hold is found by packing clips as long as `config.data.seconds` says.
"""

import collections
import importlib.metadata
import json
import re
import time
from typing import Any

import jax
import ml_collections
from etils import epath
from tqdm import tqdm

from viavsp_jax import llm_folder, sharding
from viavsp_jax.aot import collectives, cycles, hlo, kernels, workload
from viavsp_jax.aot.topology import Chip, Topology, load_topology
from viavsp_jax.aot.typical_clips import INSTRUCTION_TOKENS
from viavsp_jax.aot.workload import Program, Work
from viavsp_jax.experiment import abstract_experiment, load_encoder_config
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.tables import aligned

Report = dict[str, Any]

VINALLAMA = LlamaConfig(
    vocab_size=46_306, hidden_size=2560, intermediate_size=6912, num_layers=32, num_heads=20, num_kv_heads=20,
    head_dim=128, rope_theta=1e4, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip
GIB = 2**30
DEAREST = 10  # instructions to list


def compile_for(config: ml_collections.ConfigDict, topology_name: str, output: epath.PathLike | None = None) -> bool:
    """Compiles the training step and decoding for a topology; prints a report and writes it to `output` as JSON.

    Returns whether both fit into the memory of its chips. Raises InputError for a wrong topology or config.
    """
    report = compiled(config, topology_name)
    if output:
        epath.Path(output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report))
    return report["fits"]


def compiled(config: ml_collections.ConfigDict, topology_name: str) -> Report:
    """The report of `compile_for`. Raises InputError for a wrong topology or config."""
    settings = read_settings(config)
    topology, folder = load_topology(topology_name), settings.llm.path
    llama = llm_folder.llama_config(folder) if folder else VINALLAMA
    mesh = sharding.make_mesh(settings.mesh, topology.devices)
    large = settings.encoder.train and not settings.encoder.path
    encoder = AVHubertConfig() if large else load_encoder_config(settings)
    experiment = abstract_experiment(settings, llama, mesh, settings.dtype, INSTRUCTION_TOKENS, encoder)
    report = {
        "fits": False,
        "model": folder or "VinaLLaMA-2.7B, as config.llm.path is not set",
        "topology": topology.name,
        "chip": topology.chip_name,
        "devices": len(topology.devices),
        "mesh": dict(mesh.shape),
        "hbm_bytes_per_device": topology.chip.hbm_bytes,
        "peak_flops_per_device": topology.chip.peak_flops,
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
    }
    for name, prepare in (("train", workload.training), ("decode", workload.decoding)):
        programs, work = prepare(experiment)
        report[name] = describe(name, programs, work, topology)
    report["fits"] = report["train"]["fits"] and report["decode"]["fits"]
    return report


def describe(name: str, programs: list[Program], work: Work, topology: Topology) -> Report:
    """Compiles the programs of a step; memory is that of the one that needs most."""
    start = time.time()
    memories, sent, spent, lines = [], collections.Counter(), collections.Counter(), []
    for program in tqdm(programs, desc=f"compiling: {name}", unit="program", leave=False):
        memory, text = compile_program(program, topology.chip)
        memories.append(memory)
        if text is None or not program.timed:
            continue
        compiled = hlo.parse(text)
        sent.update(collectives.bytes_by_kind(compiled, program.runs))
        of_kernels = kernels.seconds(program.traced.jaxpr.jaxpr, topology.chip)
        estimate = cycles.estimate(compiled, topology.chip, of_kernels, program.runs)
        spent.update(estimate.seconds)
        lines += estimate.lines
    worst = max(memories, key=lambda memory: memory["hbm_used_fraction"])
    at_peak = work.flops / topology.chip.peak_flops / len(topology.devices)
    seconds = None if "refused" in worst else spent.total()
    return {
        "fits": worst["hbm_used_fraction"] <= 1 and "refused" not in worst,
        **worst,
        "model_flops_per_step": work.flops,
        "useful_flops_fraction": work.useful_flops / work.flops,
        "collective_bytes_per_step": sent.total(),
        "collective_bytes_by_kind": dict(sent),
        "step_seconds_at_peak": at_peak,
        "step_seconds_at_bandwidth": work.bytes_read / topology.chip.hbm_bandwidth,
        "compiler_ms": seconds and 1e3 * seconds,
        "compiler_ms_by_kind": {kind: 1e3 * spent[kind] for kind in cycles.KINDS},
        "compiler_share_of_peak": seconds and at_peak / seconds,
        "dearest": [line.report() for line in sorted(lines, key=lambda line: -line.seconds)[:DEAREST]],
        "steps": work.steps,
        "clips_per_step": work.clips_per_step,
        "hours_by_compiler": seconds and seconds * work.steps / 3600,
        **work.facts,
        "compile_seconds": time.time() - start,
    }


def compile_program(program: Program, chip: Chip) -> tuple[Report, str | None]:
    """Memory on each device, or the compiler's words where it refuses, and the text of what it made."""
    try:
        compiled = program.traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).splitlines()[0]
        return {"hbm_used_fraction": max(1.0, refused_size(words) / chip.hbm_bytes), "refused": words}, None
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes + program.resident,
        "temporaries": memory.temp_size_in_bytes,
        "output": memory.output_size_in_bytes - memory.alias_size_in_bytes,  # what is handed on counts once
        "code": memory.generated_code_size_in_bytes,
    }
    return {"hbm_used_fraction": sum(sizes.values()) / chip.hbm_bytes, "hbm_bytes": sizes}, compiled.as_text()


def refused_size(message: str) -> float:
    """The bytes that a program needs by the compiler's message: the largest size in it, 0 without any."""
    sizes = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT])\b", message)
    return max((float(number) * 1024 ** ("KMGT".index(unit) + 1) for number, unit in sizes), default=0.0)


def table(report: Report) -> str:
    """The report for the eye."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    lines = [
        f"{report['model']}",
        f"{report['topology']}: {report['devices']} devices with {report['hbm_bytes_per_device'] / GIB:.2f} GiB and "
        f"{report['peak_flops_per_device'] / 1e12:.0f} TFLOP/s each; mesh: {mesh}; jax {report['jax']}, "
        f"libtpu {report['libtpu']}",
    ]
    columns = [report["train"], report["decode"]]
    rows = [
        ["", "train", "decode"],
        ["fits", *("yes" if column["fits"] else "no" for column in columns)],
        ["HBM used", *(f"{100 * column['hbm_used_fraction']:.1f} %" for column in columns)],
    ]
    for name in ("arguments", "temporaries", "output", "code"):
        sizes = [column["hbm_bytes"][name] if "hbm_bytes" in column else None for column in columns]
        rows.append([f"  {name}", *("refused" if size is None else f"{size / GIB:.2f} GiB" for size in sizes)])

    def row(name: str, key: str, unit: str = "", factor: float = 1) -> list[str]:
        digits, values = 0 if key == "steps" else 2, [column[key] for column in columns]
        return [name, *("refused" if x is None else f"{x * factor:,.{digits}f} {unit}".strip() for x in values)]

    rows += [
        row("FLOPs a step", "model_flops_per_step", "T", 1e-12),
        row("  of them useful", "useful_flops_fraction", "%", 100),
        row("sent a step by each device", "collective_bytes_per_step", "MB", 1e-6),
        row("step at peak", "step_seconds_at_peak", "ms", 1e3),
        row("step of reading weights alone", "step_seconds_at_bandwidth", "ms", 1e3),
        row("step by the compiler's estimates", "compiler_ms", "ms"),
    ]
    for kind, words in cycles.KINDS.items():
        spent = [column["compiler_ms_by_kind"][kind] for column in columns]
        if any(spent):
            rows.append([f"  {words}", *(f"{ms:,.2f} ms" for ms in spent)])
    rows += [
        row("share of peak", "compiler_share_of_peak", "%", 100),
        row("clips a step", "clips_per_step"),
        row("steps", "steps"),
        row("whole run by the compiler's estimates", "hours_by_compiler", "h"),
    ]
    lines.append(aligned(rows))
    for name, column in zip(("train", "decode"), columns, strict=True):
        if "refused" in column:
            lines.append(f"{name} refused: {column['refused']}")
        lines += ["", f"most of a step, {name}:", dearest(column["dearest"])]
    return "\n".join(lines)


def dearest(instructions: list[Report]) -> str:
    """The instructions on which most time is spent, for the eye."""
    rows = [["ms", "runs", "what for", "result", "source"]]
    for one in instructions:
        words = cycles.KINDS[one["kind"]]
        rows.append([f"{one['ms']:,.2f}", f"{one['runs']:,}", words, one["result"][:40], one["source"]])
    return aligned(rows)
