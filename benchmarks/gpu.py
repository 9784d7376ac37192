"""All that a GPU should show, in one run; benchmarks/gpu.sh is the command.

    python -m benchmarks.gpu [OUTPUT] [--tiny] [--seconds 540] [--only PART...]

Each part is a command of its own with a time limit of its own, so that one that fails or hangs costs the others
nothing. After every part the folder OUTPUT holds all that was found so far: gpu.json, gpu.md with the tables, and
gpu.log with what the commands printed. Parts stand in the order of their weight: when the time is up, the last ones are
left out, and --only runs them. With --tiny the sizes are toys, for any machine.

Where float32 is compared (`encoder float32`, `same tokens`, `golden`), TF32 is off on both sides.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, get_args

from benchmarks.rounds import spread
from viavsp_jax.models.quantize import Quantization
from viavsp_jax.runtime.errors import reported_to_user
from viavsp_jax.runtime.options import whole

ROOT = pathlib.Path(__file__).parents[1]
LEAST = 20  # seconds; with less left, a part is not begun
NO_TF32 = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "NVIDIA_TF32_OVERRIDE": "0"}
# PyTorch needs its part of the memory; unfiltered, a traceback ends with what went wrong.
EVERYWHERE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_TRACEBACK_FILTERING": "off", "PYTHONUNBUFFERED": "1"}
VERSIONS = "import sys; from benchmarks.rounds import report; report([], sys.argv[1].removeprefix('--output='))"

Found = dict[str, Any]  # of one part, as JSON


@dataclasses.dataclass(frozen=True)
class Part:
    """A command that writes its figures to the file that `--output` names; its name; how long it may take."""

    name: str
    seconds: int
    command: Sequence[str]
    tiny: str = ""  # further flags, for toy sizes
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    quantization: str = "none"

    @property
    def missing(self) -> bool:
        """Whether this version does not have what is measured."""
        return self.quantization not in get_args(Quantization)


def module(name: str, flags: str) -> list[str]:
    """The command of a benchmark."""
    return ["-m", f"benchmarks.{name}", *flags.split()]


SIZES = "--layers=2 --heads=2 --head_width=32 --ffn=128 --vocabulary=200 --feature_width=12 --rounds=1"
UPDATES = f"{SIZES} --updates=1 --batches 2"
SEARCH = f"{SIZES} --clips=2 --beams=3 --new_tokens=4"


def update(name: str, seconds: int, flags: str, quantization: str = "none") -> Part:
    """Of VinaLLaMA-2.7B."""
    command = module("real_size", f"--work training --quantization={quantization} --rounds=5 --batches 16 32 {flags}")
    # Alone, JAX may take more than its three quarters of the memory.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"} if "--alone" in flags else {}
    return Part(name, seconds, command, UPDATES, environment, quantization)


def search(name: str, seconds: int, quantization: str = "none") -> Part:
    """Of VinaLLaMA-2.7B."""
    command = module("real_size", f"--work decoding --quantization={quantization} --rounds=2 --clips=16")
    return Part(name, seconds, command, SEARCH, quantization=quantization)


def encoder(seconds: int, dtype: str, environment: dict[str, str]) -> Part:
    """Of AV-HuBERT Large."""
    tiny = "--clips=2 --batch_size=1 --layers=1 --width=64 --products=64 --rounds=1 --dtype=float32"
    command = module("encoder", f"--clips=64 --batch_size=16 --dtype={dtype}")
    return Part(f"encoder {dtype}", seconds, command, tiny, environment)


def parts(tiny: bool) -> list[Part]:
    """All, the weightiest first."""
    small = "--layers=4 --heads=4 --head_width=64 --ffn=512 --vocabulary=2000 --feature_width=64"
    computed = "avhubert_flax avsp decoding training encoder nf4"  # by JAX; the other areas are files and PyTorch
    golden = ["scripts/check_golden.py", "--data", "tests/golden", "--only", *computed.split()]
    # The recordings are compared on a CPU unless something else is asked for.
    on_gpu = {} if tiny else {"JAX_PLATFORMS": "cuda,cpu"}
    return [
        Part("versions", 60, ["-c", VERSIONS]),
        update("update bfloat16", 170, "--rows=1"),
        update("update int8", 90, "--rows=1", "int8"),
        search("beam search bfloat16", 150),
        Part("attention", 60, module("attention", "--rows=1"), "--heads=2 --head_width=16 --calls=1 --rounds=1"),
        encoder(80, "bfloat16", {}),
        Part(
            "same tokens", 80, module("beam_search", f"{small} --dtype=float32 --clips=16 --rounds=1"), SEARCH, NO_TF32
        ),
        Part("golden", 200, golden, "--only kmeans", NO_TF32 | on_gpu),
        search("beam search int8", 90, "int8"),
        update("update nf4", 90, "--rows=1", "nf4"),
        update("update bfloat16, 8 rows", 110, "--rows=8 --alone"),
        encoder(80, "float32", NO_TF32),
    ]


def run(part: Part, seconds: float, tiny: bool, log: pathlib.Path) -> Found:
    """Runs a part for at most so many seconds; `failure` is one line, or None."""
    if part.missing:
        return {"failure": "not in this version"}
    if seconds < LEAST:
        return {"failure": "no time was left"}
    command = [sys.executable, *part.command, *(part.tiny.split() if tiny else [])]
    environment = os.environ | EVERYWHERE | part.environment
    with tempfile.TemporaryDirectory() as folder, log.open("a+b") as printed:
        figures = pathlib.Path(folder) / "figures.json"
        printed.write(f"\n== {part.name}: {' '.join(command)}\n".encode())
        printed.flush()
        begin, start = printed.tell(), time.monotonic()
        # Of a session of its own, so that its children end with it.
        process = subprocess.Popen(
            [*command, f"--output={figures}"], cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found = {"seconds": round(time.monotonic() - start, 1), "failure": None}
        if figures.exists():
            found |= json.loads(figures.read_text(encoding="utf-8"))
        printed.seek(begin)
        lines = [line for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    if status is None:
        found["failure"] = f"stopped after {seconds:.0f} s"
    elif status:
        found["failure"] = f"status {status}: {lines[-1].strip() if lines else 'nothing was printed'}"
    return found


def table(name: str, found: Found) -> list[list[str]]:
    """Rows of the summary: part, figure, value."""
    rows = []
    for comparison in found.get("comparisons", []):
        unit = comparison["unit"]
        for side, rates in comparison["rates"].items():
            ratios = comparison["ratios"].get(side)
            ratio = f"; ours is {spread(ratios)} × as fast" if ratios else ""
            rows.append([name, f"{side}, {unit}/s", spread(rates) + ratio])
    for fact, value in found.get("facts", {}).items():
        if value is not None:
            rows.append([name, fact, f"{value:,.4g}" if isinstance(value, float) else str(value)])
    if name == "versions":
        rows += [[name, what, value] for what, value in found.get("machine", {}).items()]
    if found["failure"]:
        rows.append([name, "failed", found["failure"].replace("|", "/")])
    return rows


def markdown(results: dict[str, Found]) -> str:
    """All tables."""
    rows = [["part", "figure", "value (rates and ratios: min–median–max)"], ["---"] * 3]
    rows += [row for name, found in results.items() for row in table(name, found)]
    took = ", ".join(f"{name} {found['seconds']:.0f}" for name, found in results.items() if "seconds" in found)
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\nSeconds: {took}\n"
    for name, found in results.items():
        if "rows" in found:
            compared = [["area", "error", "tolerance", "", "what"], ["---"] * 5, *found["rows"]]
            text += f"\n{name}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in compared) + "\n"
    return text


@reported_to_user()
def main(arguments: Sequence[str] | None = None) -> dict[str, Found]:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__.split("\n")[0])
    names = [part.name for part in parts(tiny=False)]
    parser.add_argument("output", nargs="?", type=pathlib.Path, default=os.environ.get("OUT", "runs/gpu"))
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument(
        "--seconds", type=whole("--seconds", 1), default=540, help="for all together (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + args.seconds, {}
    for part in parts(args.tiny):
        if part.name not in args.only:
            continue
        left = end - time.monotonic()
        # Toys are for machines that are slow or busy.
        limit = left if args.tiny else min(part.seconds, left)
        found = results[part.name] = run(part, limit, args.tiny, args.output / "gpu.log")
        print(f"{part.name}: {found['failure'] or 'done'} ({found.get('seconds', 0):.0f} s)", flush=True)
        (args.output / "gpu.json").write_text(
            json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (args.output / "gpu.md").write_text(markdown(results), encoding="utf-8")
    print(f"\n{markdown(results)}")
    return results


if __name__ == "__main__":
    main()
