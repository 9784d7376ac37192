"""TPU slices to compile for, without having them: the compiler of the libtpu package needs no chip."""

import dataclasses
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from viavsp_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip, which JAX sees as one device."""

    peak_flops: float  # a second, in bfloat16
    hbm_bytes: int  # that the compiler lets a program have; the runtime keeps some for itself
    hbm_bandwidth: float  # bytes a second
    clock: float  # cycles a second
    link_bandwidth: float  # bytes a second, over all links to other chips of its slice
    network_bandwidth: float  # bytes a second, its share of the network between slices
    cores: int = 1
    options: dict[str, str] = dataclasses.field(default_factory=dict)  # of libtpu, so that it is one device

    @property
    def vector_rate(self) -> float:
        """Elementwise operations a second: each core has four units for 8 x 128 values."""
        return self.cores * 4 * 8 * 128 * self.clock


def _gib(number: float) -> int:
    return int(number * 2**30)


# Peaks, memories and links are those of Google's pages on each chip (docs.cloud.google.com/tpu/docs/v5e and so on); the
# network is a pod's bandwidth over its chips. The clock is what makes the peak of the chip's matrix units: v5e has 4 of
# 128 x 128, v4 and v5p 4 in each of 2 cores, v6e 2 of 256 x 256, and a unit does 2 operations a cell and cycle.
CHIPS = {
    "v4": Chip(275e12, _gib(30.75), 1228e9, 1.05e9, 300e9, 6.25e9, 2, {"chip_config_name": "megacore"}),
    "v5e": Chip(197e12, _gib(15.75), 819e9, 1.5e9, 200e9, 3.125e9),
    "v5p": Chip(459e12, _gib(95.74), 2765e9, 1.75e9, 600e9, 6.25e9, 2),
    "v6e": Chip(918e12, _gib(31.25), 1640e9, 1.75e9, 400e9, 12.5e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind of chip."""

    name: str
    chip_name: str
    devices: list[jax.Device]  # can be compiled for, not run on

    @property
    def chip(self) -> Chip:
        """What each device is."""
        return CHIPS[self.chip_name]


def load_topology(name: str) -> Topology:
    """The devices of e.g. v5e:2x4, or of two such slices, 2xv5e:2x4.

    Chips of this host are left alone: JAX is set to the CPU. Raises InputError for a slice that does not exist, and
    when libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu is not installed, which compiles for TPUs: run pip install -e .[tpu]")
    found = re.fullmatch(r"(?:([1-9]\d*)x)?(\w+):(\d+(?:x\d+){1,2})", name)
    if not found or found[2] not in CHIPS:
        raise InputError(f"--topology is {name}, expected one of {', '.join(CHIPS)} with a shape, e.g. v5e:2x4")
    slices, chip, shape = int(found[1] or 1), found[2], found[3]
    # A host has 2x2 chips, of a smaller slice fewer.
    host = [min(2, int(size)) for size in shape.split("x")[:2]]
    options = {**CHIPS[chip].options, "chips_per_host_bounds": (*host, 1), "num_slices": slices}
    jax.config.update("jax_platforms", "cpu")
    # libtpu is not to look for chips, nor to keep others from using it meanwhile.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    try:
        devices = topologies.get_topology_desc(f"{chip}:{shape}", "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--topology is {name}, which libtpu does not know: {str(error).splitlines()[0]}") from None
    return Topology(name, chip, devices)
