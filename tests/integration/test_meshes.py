"""On meshes of 8 CPU devices, in processes of their own, since the number of devices is fixed at start."""

import shutil
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
from devices import with_devices
from small_run import DEMO_LLAMA

from viavsp_jax import llm_folder


def test_losses_gradients_and_quantization_do_not_depend_on_the_mesh():
    command = [sys.executable, "tests/helpers/mesh_run.py"]
    result = subprocess.run(command, env=with_devices(8), capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout == "equal\n", result.stderr


def test_each_device_reads_its_part_of_the_weights(tmp_path, monkeypatch):
    """Of matrices that are cut unevenly, as large ones are, and read in another dtype than they are stored in."""
    monkeypatch.setattr(llm_folder, "CHUNK_BYTES", 100)
    kernels = np.random.default_rng(0).normal(size=(4, 24, 40)).astype(ml_dtypes.bfloat16)
    values = (("layers/o/kernel", layer, kernel) for layer, kernel in enumerate(kernels))
    shutil.copy(DEMO_LLAMA / "config.json", tmp_path)
    llm_folder.save_llm(tmp_path, values, {"source": "here", "dtype": "bfloat16", "version": "1"})
    script = """
        import sys
        import jax, numpy as np
        from jax.sharding import AxisType
        from viavsp_jax import llm_folder, sharding

        shapes = {"layers": {"o": {"kernel": jax.ShapeDtypeStruct((4, 24, 40), "float32")}}}
        whole = llm_folder.load_llm(sys.argv[1], shapes)
        for data, fsdp, tensor in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 4)):
            mesh = jax.make_mesh((data, fsdp, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
            placed = sharding.with_sharding({"llm": shapes}, sharding.shard_params(mesh, {"llm": shapes}))["llm"]
            found = llm_folder.load_llm(sys.argv[1], placed)["layers"]["o"]["kernel"]
            np.testing.assert_array_equal(found, whole["layers"]["o"]["kernel"])
            assert found.sharding == placed["layers"]["o"]["kernel"].sharding
            assert {x.data.shape for x in found.addressable_shards} == {(4, 24 // tensor, 40 // fsdp)}
        print("equal")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    result = subprocess.run(command, env=with_devices(8), capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "equal\n", result.stderr
