"""Folders and tables made by strangers with bad intent."""

import builtins
import json
import pathlib
import pickle
import shutil
import struct
import sys

import joblib
import numpy as np
import pytest
import torch
from hostile_pickles import HARMFUL, Call
from hostile_reading import refused
from safetensors.numpy import save_file
from sklearn.cluster import KMeans

from benchmarks.fuzz_targets import (
    DEMO_LLAMA,
    write_centers,
    write_corpus,
    write_encoder,
    write_export,
    write_hf,
    write_llm,
    write_report,
    write_shards,
    write_tokenizer,
)
from convert import avhubert, from_hf, from_km
from convert.decode_hf import read_config
from convert.hub.modeling_viavsp import ExportError, ViAVSPModel, load_llm
from viavsp_jax import llm_folder
from viavsp_jax.data import records
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.errors import InputError
from viavsp_jax.models.avhubert_config import AVHubertConfig
from viavsp_jax.prepare import kmeans, manifest, mouth
from viavsp_jax.prepare.avhubert_torch import load_encoder
from viavsp_jax.report.__main__ import remake
from viavsp_jax.report.analysis import read_channels

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def evil_code(tmp_path, monkeypatch):
    """A module that could be imported, beside the files, and the marker that shows that it was."""
    marker = tmp_path / "marker"
    (tmp_path / "evilcode.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # to whoever asks whether it is trusted
    yield marker
    assert not marker.exists() and "evilcode" not in sys.modules


# Offsets and shapes of "centers" in a file of so many bytes of data; the last ones are the length of the header.
HEADERS = {
    "beyond the end": {"centers": ([3, 4], 0, 48), "more": ([12], 48, 96)},
    "overlapping": {"centers": ([3, 4], 0, 48), "more": ([3, 4], 24, 72)},
    "backwards": {"centers": ([3, 4], 48, 0)},
    "huge": {"centers": ([1 << 40, 1 << 20], 0, 48)},
    "overflowing": {"centers": ([1 << 33, 1 << 31], 0, 48)},
    "a gap": {"centers": ([3, 4], 16, 64)},
}


@pytest.mark.parametrize("header", HEADERS)
def test_safetensors_that_lie_about_their_tensors(tmp_path, header):
    tensors = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        for name, (shape, start, end) in HEADERS[header].items()
    }
    text = json.dumps({"__metadata__": {"layer": "2"}, **tensors}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(48))
    write_encoder(tmp_path / "encoder")
    shutil.copy(tmp_path / "encoder/config.json", tmp_path)
    refused("model.safetensors: not a file of the kmeans stage", kmeans.load_centers, path)
    refused("model.safetensors: not a readable safetensors file", avhubert.load_flax, tmp_path)
    refused("model.safetensors: not a readable safetensors file", load_encoder, tmp_path)
    refused("model.safetensors is not a safetensors file, or damaged", from_hf.open_files, tmp_path)


@pytest.mark.parametrize("length", [1 << 63, 1 << 40, 200_000_000, 3])
def test_safetensors_with_a_header_of_another_length(tmp_path, length):
    write_centers(tmp_path)
    path = tmp_path / "kmeans.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused("kmeans.safetensors: not a file of the kmeans stage", kmeans.load_centers, path)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "../model-0.safetensors", "a/b.safetensors", "..", "", 7, None, ["a"]]
)
def test_an_index_that_names_files_elsewhere(tmp_path, name):
    write_hf(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    weights = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weights | {"model.norm.weight": name}}))
    refused("index.json (names|is not an index)", from_hf.load_params, tmp_path)


@pytest.mark.parametrize("layers", [10**6, 10**9, 1 << 62])
def test_a_config_of_endless_layers(tmp_path, layers):
    write_hf(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    refused(f"config.json(: num_layers is| says) {layers}", from_hf.load_params, tmp_path)


@pytest.mark.parametrize("change", [{"num_layers": 10**6}, {"num_layers": 1 << 70}, {"conv_pos": 1 << 40}])
def test_an_encoder_without_end(tmp_path, change):
    write_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    for read in (load_encoder, avhubert.load_flax):
        refused(f"config.json: .*{next(iter(change))}", read, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [1 << 40, 1 << 40]}, "which is too large"),
        ({"shape": [1 << 40, 8]}, "which is too large"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 20, 1 << 20]}}}, "has chunks of"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]}, "by bytes, gzip"),
        ({"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../../"}}}, "cannot be read"),
    ],
)
def test_a_weight_that_declares_more_than_it_has(tmp_path, change, message):
    """Memory that is not there would end the process in tensorstore."""
    folder = tmp_path / "llm"
    folder.mkdir()
    write_llm(folder)
    path = folder / "params" / "embedding" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(f"{folder}: the weight embedding .*{message}", llm_folder.read_layer, folder, "embedding", ...)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_shards_whose_metadata_name_code(tmp_path, evil_code, key):
    write_shards(tmp_path)
    path = tmp_path / "viavsp" / "features.json"
    features = json.loads(path.read_text())
    field = features["featuresDict"]["features"]["id"]
    del field["pythonClassName"]
    field[key] = "evilcode.Evil"
    path.write_text(json.dumps(features))
    refused(
        "viavsp: features.json names 'evilcode.Evil', expected classes of TFDS", records.open_split, path.parent, "test"
    )


@pytest.mark.parametrize("key", ["AutoTokenizer", "AutoConfig", "AutoModelForCausalLM"])
def test_code_beside_a_language_model_is_not_run(tmp_path, evil_code, key):
    write_tokenizer(tmp_path)
    auto_map = {key: ["evilcode.Evil"] * 2 if key == "AutoTokenizer" else "evilcode.Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": auto_map}))
    config = json.loads((DEMO_LLAMA / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto_map}))
    try:
        load_prompt(tmp_path, "</s>")
    except InputError as error:
        assert str(tmp_path) in str(error)
    with pytest.raises((ExportError, ValueError)):
        load_llm(tmp_path, None, "cpu", torch.float32)


def test_pickled_weights_of_a_language_model_are_not_read(tmp_path):
    marker = tmp_path / "marker"
    shutil.copy(DEMO_LLAMA / "config.json", tmp_path)
    torch.save({"model.norm.weight": HARMFUL["posix.system"](marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ExportError, match=f"{tmp_path} holds no weights as safetensors"):
        load_llm(tmp_path, None, "cpu", torch.float32)
    refused("holds its weights as .*bin only", from_hf.open_files, tmp_path)
    assert not marker.exists()


def test_a_pickled_adapter_is_not_read(tmp_path):
    marker = tmp_path / "marker"
    write_export(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(DEMO_LLAMA)}))
    torch.save({"a": HARMFUL["posix.system"](marker)}, tmp_path / "adapter" / "adapter_model.bin")
    save_file({"avfeat_to_llm.weight": np.zeros((2, 2), np.float32)}, tmp_path / "projector.safetensors")
    with pytest.raises(ExportError, match="adapter_model.safetensors does not exist"):
        ViAVSPModel.from_pretrained(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("symbol", ["posix.system", "builtins.exec"])
def test_an_array_of_objects_is_not_read(tmp_path, symbol):
    marker, path = tmp_path / "marker", tmp_path / "face.npy"
    np.save(path, np.array([[HARMFUL[symbol](marker)]], object), allow_pickle=True)
    refused("face.npy: not a readable .npy file", mouth.load_mean_face, path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "shape", ["(1099511627776, 68)", "(9223372036854775807,)", "(18446744073709551616, 2)", "(68, 2"]
)
def test_an_array_that_declares_more_than_it_has(tmp_path, shape):
    path = tmp_path / "face.npy"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(1088))
    refused("face.npy: ", mouth.load_mean_face, path)


@pytest.mark.parametrize("kind", ["dtype", "shape"])
def test_types_and_shapes_without_end_are_not_shown(tmp_path, kind):
    nested = ["f4"]
    for _ in range(60):
        nested = [nested, nested]
    wrapper, model = joblib.numpy_pickle.NumpyArrayWrapper(np.ndarray, (1, 1), "C", np.dtype("f4")), KMeans()
    setattr(wrapper, kind, Call(np.dtype, nested) if kind == "dtype" else nested)
    model.cluster_centers_ = wrapper
    (tmp_path / "model.km").write_bytes(pickle.dumps(model))
    refused("model.km: not a readable K-Means model", from_km.read_centers, tmp_path / "model.km")


DEEP = "[" * 100_000
JSON_READERS = {
    "model.safetensors.index.json": (write_hf, from_hf.open_files),
    "config.json": (write_hf, llm_folder.llama_config),
    "conversion.json": (write_llm, llm_folder.read_conversion),
    "mapping.json": (write_report, lambda folder: read_channels(folder / "mapping.json")),
    "report.json": (write_report, lambda folder: remake(folder, "")),
    "viavsp/features.json": (write_shards, lambda folder: records.open_split(folder / "viavsp", "test")),
    "viavsp/dataset_info.json": (write_shards, lambda folder: records.open_split(folder / "viavsp", "test")),
}


def sampled(folder: pathlib.Path):
    return manifest.sample(manifest.read_metadata(folder), 0.5, 0, folder)


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [(name, *functions) for name, functions in JSON_READERS.items()]
    + [
        ("config.json", write_export, read_config),
        ("config.json", write_encoder, lambda folder: AVHubertConfig.from_json(folder / "config.json")),
        ("mapping.json", write_corpus, sampled),
    ],
)
@pytest.mark.parametrize("content", [DEEP, "[1, 2]", "9" * 5000, "null", '"text"'])
def test_json_of_another_form(tmp_path, name, write, read, content):
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder)
    (folder / name).write_text(content)
    refused(str(folder), read, folder)
