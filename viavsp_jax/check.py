"""--mode=check: everything that can be known of a set-up before the first update, printed; nothing is trained."""

import importlib.util
from typing import Any

import jax
import ml_collections
from etils import epath

from viavsp_jax.aot.compile import compiled
from viavsp_jax.aot.topology import load_topology
from viavsp_jax.preflight.findings import UNKNOWN
from viavsp_jax.preflight.look import look
from viavsp_jax.runtime import distributed
from viavsp_jax.runtime.errors import InputError


@distributed.others_alive()
def check(config: ml_collections.ConfigDict, workdir: epath.PathLike, topology: str | None = None) -> bool:
    """Looks at a set-up and prints what is right, warnings and all faults; the first process does.

    With a `topology` (see aot/topology.py) the programs are compiled for it, which takes a minute or more.

    Returns whether training would start.
    """
    compiles = topology is not None and importlib.util.find_spec("libtpu") is not None
    found, _ = look(config, workdir, load_topology(topology).devices if compiles else None)
    what = "memory and hours"
    if topology is None:
        found.not_asked.append(f"{what}, for which --topology=v5e:2x4 or another slice is to be given")
    elif not compiles:
        found.not_asked.append(f"{what}, for which libtpu is needed: pip install -c constraints.txt -e '.[tpu]'")
    else:
        report = found.ask(what, compiled, config, topology)
        if report is not UNKNOWN:
            found.fact(what, _words(report))
            found.ask(what, _check_fits, report)
    if jax.process_index() == 0:
        print(found.text())
    return not found.faults


def _words(report: dict[str, Any]) -> str:
    used = ", ".join(f"{name} {report[name]['hbm_used_fraction']:.1%}" for name in ("train", "decode"))
    hours = report["train"]["hours_by_compiler"]
    return f"{report['topology']}: {used} of the memory of a chip" + (f", {hours:,.2f} h" if hours is not None else "")


def _check_fits(report: dict[str, Any]) -> None:
    for name in ("train", "decode"):
        if not report[name]["fits"]:
            raise InputError(
                f"{name} needs {report[name]['hbm_used_fraction']:.0%} of the "
                f"{report['hbm_bytes_per_device'] / 2**30:.2f} GiB of a chip of {report['topology']}: try "
                "--config.remat=layers, "
                "--config.llm.quantization=nf4, fewer or shorter rows, or a larger slice (--mode=compile says more)"
            )
