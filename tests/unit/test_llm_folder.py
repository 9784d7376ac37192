"""The language-model folder: what is written comes back whole, in any sharding, or not at all."""

import hashlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore
import torch
from flax import traverse_util
from hf_weights import load_params
from small_run import DEMO_LLAMA
from tiny_llama import frozen_shapes

from viavsp_jax import llm_folder
from viavsp_jax.runtime.errors import InputError


def test_folder_errors(tmp_path):
    with pytest.raises(InputError, match="config.json does not exist"):
        llm_folder.read_conversion(tmp_path)
    with pytest.raises(InputError, match="is not a converted language model: run python -m convert.from_hf"):
        llm_folder.read_conversion(DEMO_LLAMA)


SHAPES = {"layers/o/kernel": (4, 24, 40), "embedding": (23, 17), "final_norm/scale": (9,)}


def values():
    """Weights, some of them zeros, as a conversion yields them: (path, layer, array)."""
    rng = np.random.default_rng(0)
    for layer in range(4):
        yield "layers/o/kernel", layer, rng.normal(size=(24, 40)).astype(ml_dtypes.bfloat16) * (layer != 2)
    yield "embedding", ..., rng.normal(size=(17, 23)).T.astype(ml_dtypes.bfloat16)
    yield "final_norm/scale", ..., np.zeros(9, ml_dtypes.bfloat16)


def shapes(**changed):
    """What `load_llm` is to read; unsharded."""
    flat = {path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in SHAPES.items()}
    return traverse_util.unflatten_dict(flat | changed, sep="/")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose matrices are cut unevenly, as large ones are."""
    monkeypatch.setattr(llm_folder, "CHUNK_BYTES", 100)
    shutil.copy(DEMO_LLAMA / "config.json", tmp_path)
    source = {"source": "here", "dtype": "bfloat16", "version": "1"}
    llm_folder.save_llm(tmp_path, values(), source)
    assert llm_folder.read_conversion(tmp_path) == source | {"sha256": llm_folder.read_conversion(tmp_path)["sha256"]}
    return tmp_path


def chunks(folder, path):
    return sorted(file for file in (folder / "params" / path / "c").rglob("*") if file.is_file())


def test_weights_come_back_whole_and_layer_by_layer(folder):
    weights = traverse_util.flatten_dict(llm_folder.load_llm(folder, shapes()), sep="/")
    assert weights.keys() == SHAPES.keys() and not weights["final_norm/scale"].any()
    for path, index, value in values():
        for found in (weights[path][index], llm_folder.read_layer(folder, path, index)):
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, value)
    files = chunks(folder, "layers.o.kernel")
    assert len(files) == 4 * 4 * 8 and {file.stat().st_size for file in files} == {6 * 5 * 2 + 4}


def test_the_hash_covers_paths_and_bytes_in_order(folder):
    kernels = b"".join(value.tobytes() for _, _, value in list(values())[:4])
    embedding = list(values())[4][2].tobytes()
    expected = b"layers/o/kernel" + kernels + b"embedding" + embedding + b"final_norm/scale" + bytes(18)
    assert llm_folder.read_conversion(folder)["sha256"] == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_changed_as_pytorch_does(raw, llm, dtype):
    expected = load_params(raw)["llm"]["layers"]["down"]["kernel"]
    found = llm_folder.load_llm(llm, frozen_shapes(raw, jnp.dtype(dtype)))["layers"]["down"]["kernel"]
    assert str(found.dtype) == dtype
    wanted = torch.from_numpy(expected).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(found.astype(np.float32), wanted)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "Not enough data"),
        (lambda file: file.write_bytes(b""), "Not enough data"),
        (flip_a_bit, "Digest mismatch"),
        (lambda file: (file.parents[3] / "zarr.json").unlink(), "does not exist"),
        (lambda file: (file.parents[3] / "zarr.json").write_text("{"), "zarr.json"),
        (lambda file: shutil.rmtree(file.parents[3]), "does not exist"),
    ],
    ids=["deleted", "truncated", "empty", "changed", "no metadata", "metadata damaged", "array deleted"],
)
@pytest.mark.parametrize("layer", [1, 2])  # the second holds zeros only
def test_a_damaged_weight_is_named(folder, damage, reason, layer):
    damage(folder / "params" / "layers.o.kernel" / "c" / str(layer) / "0" / "0")
    message = rf"{folder}: the weight layers/o/kernel cannot be read, convert again .* \(.*{reason}"
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes())
    for read in (
        lambda: llm_folder.load_llm(folder, shapes()),
        lambda: llm_folder.load_llm(folder, placed),
        lambda: llm_folder.read_layer(folder, "layers/o/kernel", layer),
    ):
        with pytest.raises(InputError, match=message) as error:
            read()
        assert "\n" not in str(error.value) and "tensorstore_spec" not in str(error.value)


def test_a_shape_that_contradicts_the_config(folder):
    wanted = shapes(**{"final_norm/scale": jax.ShapeDtypeStruct((8,), np.float32)})
    with pytest.raises(InputError, match=r"the weight final_norm/scale is \(9,\) and not \(8,\), as config.json says"):
        llm_folder.load_llm(folder, wanted)


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": "0"}'])
def test_a_damaged_conversion_record(folder, text):
    (folder / "conversion.json").write_text(text)
    with pytest.raises(InputError, match="conversion.json is damaged, convert again"):
        llm_folder.read_conversion(folder)


def test_an_interrupted_conversion_is_none_and_is_replaced(folder):
    def interrupted():
        yield "layers/gate/kernel", 0, np.ones((3, 3), np.float32)
        raise KeyboardInterrupt

    record = {"source": "here", "dtype": "float32", "version": "1"}
    with pytest.raises(KeyboardInterrupt):
        llm_folder.save_llm(folder, interrupted(), record)
    with pytest.raises(InputError, match="is not a converted language model"):
        llm_folder.load_llm(folder, shapes())
    llm_folder.save_llm(folder, values(), record)
    assert {path.name for path in (folder / "params").iterdir()} == {path.replace("/", ".") for path in SHAPES}
    assert llm_folder.load_llm(folder, shapes())["layers"]["o"]["kernel"][3].any()


def test_a_bucket_is_named_by_its_address():
    spec = tensorstore.Spec(llm_folder._spec("gs://bucket/llm", "layers/q/kernel"))
    assert spec.kvstore.to_json() == {"driver": "gcs", "bucket": "bucket", "path": "llm/params/layers.q.kernel/"}
