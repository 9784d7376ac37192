"""Folders and tables made by strangers that name code, or hold pickles: nothing of it is run."""

import builtins
import json
import pickle
import shutil
import sys

import numpy as np
import peft
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import transformers
from etils import epath
from hostile_pickles import HARMFUL
from hostile_reading import refused
from safetensors.numpy import save_file

from convert import from_hf
from convert.hub.language_model_viavsp import ExportError, load_llm
from convert.hub.modeling_viavsp import ViAVSPModel
from tests.stress.fuzz_files import (
    DEMO_LLAMA,
    write_corpus,
    write_export,
    write_shards,
    write_tokenizer,
)
from viavsp_jax.data import records
from viavsp_jax.data.prompt import load_prompt
from viavsp_jax.prepare.corpus import vasr
from viavsp_jax.prepare.recordings import mouth
from viavsp_jax.runtime.errors import InputError


@pytest.fixture
def evil_code(tmp_path, monkeypatch):
    """A module that could be imported, beside the files, and the marker that shows that it was."""
    marker = tmp_path / "marker"
    (tmp_path / "evilcode.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # to whoever asks whether it is trusted
    yield marker
    assert not marker.exists() and "evilcode" not in sys.modules


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A language model of one layer, as transformers writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 8)
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


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


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "evilcode"},
        {"peft_type": "evilcode.Evil"},
        {"task_type": "evilcode.Evil"},
    ],
)
def test_code_that_an_adapter_names_is_not_run(tmp_path, evil_code, tiny, change):
    write_export(tmp_path)
    adapter = tmp_path / "adapter"
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", base_model_name_or_path=str(tiny))
    peft.get_peft_model(load_llm(tiny, None, "cpu", torch.float32), lora).save_pretrained(adapter)
    save_file({"avfeat_to_llm.weight": np.zeros((2, 2), np.float32)}, tmp_path / "projector.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ExportError, match=f"{adapter} is not an adapter"):
        ViAVSPModel.from_pretrained(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("name", ["pickle.bin", "../x.safetensors", "/x.safetensors", "a/x.safetensors", 7, "evil.bin"])
def test_an_index_of_a_base_model_names_safetensors_only(tmp_path, tiny, name):
    """transformers reads whatever an index names, also with use_safetensors."""
    marker, weights = tmp_path / "marker", safetensors.torch.load_file(tiny / "model.safetensors")
    shutil.copy(tiny / "config.json", tmp_path)
    torch.save(weights, tmp_path / "pickle.bin")
    torch.save({"a": HARMFUL["posix.system"](marker)}, tmp_path / "evil.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match="model.safetensors.index.json names"):
        load_llm(tmp_path, None, "cpu", torch.float32)
    assert not marker.exists()


@pytest.mark.parametrize("symbol", ["posix.system", "builtins.exec"])
def test_an_array_of_objects_is_not_read(tmp_path, symbol):
    marker, path = tmp_path / "marker", tmp_path / "face.npy"
    np.save(path, np.array([[HARMFUL[symbol](marker)]], object), allow_pickle=True)
    refused("face.npy: not a readable .npy file", mouth.load_mean_face, path)
    assert not marker.exists()


def test_a_column_whose_type_is_a_pickle(tmp_path):
    """Arrow once took such a type up; here it is a column of text."""
    marker = tmp_path / "marker"
    write_corpus(tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "metadata.parquet")
    kind = {"ARROW:extension:name": "arrow.py_extension_type"}
    kind["ARROW:extension:metadata"] = pickle.dumps(HARMFUL["posix.system"](marker))
    schema = pyarrow.schema([field.with_metadata(kind) for field in table.schema])
    pyarrow.parquet.write_table(table.cast(schema), tmp_path / "metadata.parquet")
    assert vasr.read_metadata(epath.Path(tmp_path))["id"].tolist() == table["id"].to_pylist()
    assert not marker.exists()
