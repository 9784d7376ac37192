"""Runs the sides of a benchmark in turn and reports items a second and ratios with their spread."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from viavsp_jax.runtime.options import new_file, whole
from viavsp_jax.runtime.tables import aligned

PACKAGES = (
    "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
    "flax", "grain", "torch", "transformers", "peft", "numpy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured: for each side one rate (items/s) a round, all sides in the same rounds, ours first."""

    title: str
    unit: str
    rates: dict[str, list[float]]

    def ratios(self) -> dict[str, list[float]]:
        """The first side's rate over every other side's, round by round."""
        (_, ours), *others = self.rates.items()
        return {name: [a / b for a, b in zip(ours, theirs, strict=True)] for name, theirs in others}

    def table(self) -> str:
        """Rates and ratios, each as min–median–max over the rounds."""
        ratios, (ours, *_) = self.ratios(), self.rates
        rounds = len(self.rates[ours])
        rows = [["side", f"{self.unit}/s", f"s/{self.unit.removesuffix('s')}", "ratio"]]
        for name, rates in self.rates.items():
            ratio = spread(ratios[name]) if name in ratios else ""
            rows.append([name, spread(rates), f"{1 / statistics.median(rates):.4g}", ratio])
        title = f"{self.title} ({rounds} rounds, min–median–max; ratio: {ours} over the side)"
        return f"{title}\n{aligned(rows)}"

    def as_json(self) -> dict:
        """The same as plain values."""
        return dataclasses.asdict(self) | {"ratios": self.ratios()}


def compare(sides: dict[str, Callable[[], int]], rounds: int, title: str, unit: str = "clips") -> Comparison:
    """Times the sides alternately.

    Args:
      sides: name → a function that does the work once, waits until it is done, and returns how many items it did. Ours
        first. Each is called once before the clock starts.
      rounds: timed calls of each side. Every other round goes through the sides backwards.
      title: what is compared.
      unit: what an item is, in the plural.
    """
    for side in sides.values():
        side()
    rates = {name: [] for name in sides}
    for number in tqdm(range(rounds), desc=title, unit="round"):
        for name in list(sides) if number % 2 == 0 else reversed(sides):
            start = time.perf_counter()
            items = sides[name]()
            rates[name].append(items / (time.perf_counter() - start))
    return Comparison(title, unit, rates)


def spread(values: list[float]) -> str:
    """`min–median–max`, to three or four significant digits."""
    return "–".join(
        f"{f(values):,.0f}" if f(values) >= 1000 else f"{f(values):.3g}" for f in (min, statistics.median, max)
    )


def machine() -> dict[str, str]:
    """What ran it, and when."""
    import jax
    import torch

    versions = {name: version(name) for name in PACKAGES if version(name)}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices = jax.devices()
    found = {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "jax devices": f"{len(devices)} × {devices[0].device_kind}",
        "torch device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch threads": str(torch.get_num_threads()),
    } | gpu()
    return found | {
        "versions": ", ".join(
            f"{name} {number}" for name, number in ({"python": platform.python_version()} | versions).items()
        ),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def gpu() -> dict[str, str]:
    """The NVIDIA GPU that the driver shows, if any."""
    if not shutil.which("nvidia-smi"):
        return {}
    asked = ("name", "memory.total", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30).stdout.splitlines()
    return {f"GPU {number} ({', '.join(asked)})": line for number, line in enumerate(found)}


def processor() -> str:
    """The model name of the processor."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def version(package: str) -> str | None:
    """The installed version, if any."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every benchmark has."""
    parser.add_argument(
        "--rounds", type=whole("--rounds", 1), default=3, help="timed rounds after a warm-up (default: %(default)s)"
    )
    parser.add_argument("--output", type=new_file("--output"), help="also write the figures to this JSON file")


def report(comparisons: list[Comparison], output: str | None, **facts: object) -> None:
    """Prints the tables, the given facts (name → value) and the machine; writes all of it to a file on request."""
    facts = {name.replace("_", " "): value for name, value in facts.items()}
    for comparison in comparisons:
        print(f"\n{comparison.table()}")
    about = machine() | {"command": command()}
    print("\n" + "\n".join(f"{name}: {value}" for name, value in (facts | about).items()))
    if output:
        content = {"comparisons": [one.as_json() for one in comparisons], "facts": facts, "machine": about}
        pathlib.Path(output).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def command() -> str:
    """The command line that runs this again."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {module.name}" if module else sys.argv[0]
    return " ".join(["python", name, *sys.argv[1:]])
