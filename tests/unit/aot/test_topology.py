"""TPU slices that are not there: their devices, their meshes, and what cannot be one."""

import importlib.util
import os

import numpy as np
import pytest

from configs import base
from viavsp_jax import sharding
from viavsp_jax.aot.topology import load_topology
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError


@pytest.fixture(autouse=True)
def environment():
    """Variables for libtpu are not to reach other tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def mesh_of(name: str, **sizes: int):
    config = base.get_config()
    config.mesh.update(sizes)
    return sharding.make_mesh(read_settings(config).mesh, load_topology(name).devices)


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v4:2x2x2", 8, "TPU v4"),  # not 16 cores
        ("v5p:2x2x2", 8, "TPU v5"),
        ("v6e:2x4", 8, "TPU v6 lite"),
    ],
)
def test_a_chip_is_a_device(name, count, kind):
    topology = load_topology(name)
    assert [device.device_kind for device in topology.devices] == [kind] * count
    assert mesh_of(name, data=-1).devices.size == count


def test_slices_share_the_data_axis():
    mesh = mesh_of("2xv5e:2x4", data=-1, tensor=4)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 4}
    of_slice = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert of_slice[:, 0].tolist() == [[0] * 4] * 2 + [[1] * 4] * 2
    with pytest.raises(InputError, match="config.mesh.data is 1, expected a multiple of 2, the number of slices"):
        mesh_of("2xv5e:2x4", data=1, fsdp=16)


@pytest.mark.parametrize("name", ["v9:2x4", "v5e", "v5e:8", "0xv5e:2x4", "v5e:2x4x2x2", "v5e:2x-4"])
def test_no_such_topology(name):
    with pytest.raises(InputError, match=f"--topology is {name}, expected one of v4, v5e, v5p, v6e with a shape"):
        load_topology(name)


def test_a_shape_that_libtpu_refuses():
    with pytest.raises(InputError, match="--topology is v5e:3x5, which libtpu does not know: .* not divisible by"):
        load_topology("v5e:3x5")


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"libtpu is not installed, which compiles for TPUs: run pip install -e .\[tpu\]"
    ):
        load_topology("v5e:2x4")
