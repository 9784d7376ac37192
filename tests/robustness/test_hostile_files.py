"""Folders and tables made by strangers with bad intent: false sizes, endless ones, names of files elsewhere."""

import json
import pathlib
import pickle
import shutil
import struct

import joblib
import numpy as np
import pyarrow.parquet
import pytest
from etils import epath
from hf_weights import load_params
from hostile_pickles import Call
from hostile_reading import limited, refused
from sklearn.cluster import KMeans

from convert import avhubert, from_hf, from_km
from convert.decode_hf import read_config
from tests.stress.fuzz_files import (
    write_centers,
    write_corpus,
    write_encoder,
    write_export,
    write_hf,
    write_llm,
    write_report,
    write_shards,
)
from viavsp_jax import encoder_folder, llm_folder
from viavsp_jax.data import records
from viavsp_jax.data.ids import read_channels
from viavsp_jax.prepare import kmeans
from viavsp_jax.prepare.corpus import vasr
from viavsp_jax.prepare.features.avhubert_torch import load_encoder
from viavsp_jax.prepare.recordings import mouth
from viavsp_jax.report import remake

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
# Offsets and shapes of "centers" in a file with 48 bytes of data.
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
    refused("index.json (names|is not an index)", load_params, tmp_path)


@pytest.mark.parametrize("layers", [10**6, 10**9, 1 << 62])
def test_a_config_of_endless_layers(tmp_path, layers):
    write_hf(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    refused(f"config.json(: num_layers is| says) {layers}", load_params, tmp_path)


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
        ({"codecs": [LITTLE, {"name": "gzip", "configuration": {"level": 9}}]}, "has chunks of .* by bytes, gzip"),
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


@pytest.mark.parametrize(
    "shape", ["(1099511627776, 68)", "(9223372036854775807,)", "(18446744073709551616, 2)", "(68, 2"]
)
def test_an_array_that_declares_more_than_it_has(tmp_path, shape):
    path = tmp_path / "face.npy"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(1088))
    refused("face.npy: ", mouth.load_mean_face, path)


def test_a_table_of_endless_rows(tmp_path):
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(2_000_000, np.int32), ["a"])
    names = ["id", "shard", "transcript", "split"]
    pyarrow.parquet.write_table(pyarrow.table([column] * 4, names), tmp_path / "metadata.parquet")
    assert (tmp_path / "metadata.parquet").stat().st_size < 100_000
    del column
    refused(
        "metadata.parquet: not a parquet file .2000000 rows in",
        vasr.read_metadata,
        epath.Path(tmp_path),
        megabytes=8,
    )


def test_one_long_text_in_every_row_is_kept_once(tmp_path):
    rows = 200_000
    zeros, some = np.zeros(rows, np.int32), pyarrow.array(range(rows)).cast("string")
    once = [pyarrow.DictionaryArray.from_arrays(zeros, [text]) for text in ("0", "25", "16000", "câu " * 5000, "train")]
    columns = dict(zip(("shard", "fps", "sampling_rate", "transcript", "split"), once, strict=True))
    columns |= dict.fromkeys(("id", "video_num_frames", "audio_num_frames"), some)
    path = tmp_path / "metadata.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")  # texts of 5 GB
    assert path.stat().st_size < 4 * 2**20
    with limited(200):
        metadata = vasr.read_metadata(epath.Path(tmp_path))
    assert metadata["transcript"].tolist() == ["câu " * 5000] * rows and metadata["id"].is_unique


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
    return vasr.read(epath.Path(folder), with_channels=True)


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [(name, *functions) for name, functions in JSON_READERS.items()]
    + [
        ("config.json", write_export, read_config),
        ("config.json", write_encoder, encoder_folder.read_config),
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
