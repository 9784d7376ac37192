"""Hugging Face folders as strangers have them: from_hf reads the weights that transformers reads, or refuses."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import transformers
from hf_weights import load_params
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_llama import write_llama

from convert import from_hf
from convert.names import flatten, tensors
from viavsp_jax.runtime.errors import InputError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="session")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    write_llama(folder, tied=True)
    return folder


def weights(folder):
    return load_file(folder / WHOLE)


def save(folder, values, name=WHOLE):
    save_file({key: value.clone().contiguous() for key, value in values.items()}, folder / name, {"format": "pt"})


def moved(folder):
    """Other weights of the same names."""
    return {name: value + 1 for name, value in weights(folder).items()}


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def index(folder, where):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def in_shards(folder):
    """Two files in place of one; returns what the index says."""
    values = weights(folder)
    (folder / WHOLE).unlink()
    names = sorted(values)
    where = {name: f"model-{1 + (number > 8)}.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        save(folder, {name: values[name] for name in names if where[name] == file}, file)
    index(folder, where)
    return where


def save_twice(folder):
    """Into shards and then whole, as transformers does: it leaves the index behind."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / WHOLE).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(folder)
    assert (folder / INDEX).exists() and (folder / WHOLE).exists()


def shards_of_an_earlier_save(folder):
    save(folder, moved(folder), "model-1.safetensors")
    index(folder, dict.fromkeys(weights(folder), "model-1.safetensors"))


def twice_in_shards(folder):
    """The index says the first of the two files; transformers takes what it reads last."""
    where = in_shards(folder)
    values = load_file(folder / "model-2.safetensors")
    first = load_file(folder / "model-1.safetensors")
    name = next(iter(first))
    save(folder, values | {name: first[name] + 3}, "model-2.safetensors")
    assert where[name] == "model-1.safetensors"


def index_with_other_places(folder):
    where = in_shards(folder)
    files = sorted(set(where.values()))
    index(folder, {name: files[file == files[0]] for name, file in where.items()})


def index_without_some_names(folder):
    where = in_shards(folder)
    index(folder, {name: file for name, file in where.items() if "mlp" not in name})


def shards_of_two_saves(folder):
    """Those of the other one are not in the index."""
    values = moved(folder)
    in_shards(folder)
    for number in (1, 2, 3):
        save(folder, values, f"model-0000{number}-of-00003.safetensors")


def beside(name, content=None):
    def make(folder):
        save(folder, moved(folder), name) if content is None else (folder / name).write_bytes(content)

    return make


def pickled_beside(folder):
    torch.save(moved(folder), folder / "pytorch_model.bin")


def links(folder):
    """As in the cache of downloads."""
    blobs = folder / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(x for x in folder.iterdir() if x.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.join("blobs", str(number)))


def fronted(front, back=lambda name: name):
    return lambda folder: save(folder, {front + back(name): value for name, value in weights(folder).items()})


def base_model(folder):
    """Saved from LlamaModel: without the head, and without `model.` in front of the names."""
    transformers.AutoModelForCausalLM.from_pretrained(folder).model.save_pretrained(folder)
    assert "embed_tokens.weight" in weights(folder)
    config(folder, architectures=["LlamaModel"])


def head_in_place_of_the_embedding(folder):
    values = weights(folder)
    save(folder, values | {"lm_head.weight": values["model.embed_tokens.weight"]})
    values = weights(folder)
    del values["model.embed_tokens.weight"]
    save(folder, values)


def head_as_well(folder):
    values = weights(folder)
    save(folder, values | {"lm_head.weight": values["model.embed_tokens.weight"]})


def buffers(folder):
    save(folder, weights(folder) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)})


def stored_as(stored, **changes):
    def make(folder):
        save(folder, {name: value.to(stored) for name, value in weights(folder).items()})
        config(folder, **changes)

    return make


READ = {
    "saved in shards, then whole": save_twice,
    "shards and index of an earlier save": shards_of_an_earlier_save,
    "in shards": in_shards,
    "a tensor in two shards": twice_in_shards,
    "an index with other places": index_with_other_places,
    "an index without some names": index_without_some_names,
    "shards of two saves": shards_of_two_saves,
    "a folder in place of the file": lambda folder: (in_shards(folder), (folder / WHOLE).mkdir()),
    "a variant beside": beside("model.fp16.safetensors"),
    "Mistral's own file beside": beside("consolidated.safetensors"),
    "GGUF beside": beside("model.gguf", b"GGUF"),
    "weights of an adapter beside": beside("adapter_model.safetensors"),
    "an index of a variant beside": beside("model.safetensors.index.fp16.json", b"{}"),
    "newer pickled weights beside": pickled_beside,
    "an index that is damaged beside": beside(INDEX, b"{"),
    "links": links,
    "names with model. in front": fronted("model."),
    "buffers of old": buffers,
    "another architecture named": lambda folder: config(folder, architectures=["LlamaForSequenceClassification"]),
    "code of its own": lambda folder: config(folder, auto_map={"AutoModelForCausalLM": "x.Y"}),
    "stored in less than the config says": stored_as(torch.bfloat16, dtype="float32"),
    "no dtype in the config": stored_as(torch.float16, dtype=None),
    "dtype under its old name": stored_as(torch.float16, dtype=None, torch_dtype="float16"),
    "both names of the dtype": stored_as(torch.float16, dtype="float16", torch_dtype="bfloat16"),
}
READ_TIED = {
    "the base model alone": base_model,
    "the head in place of the embedding": head_in_place_of_the_embedding,
    "the head as well": head_as_well,
}


def read_as_transformers(folder):
    """All weights of the one are those of the other."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    ours = load_params(folder)
    flat, found = flatten(ours), tensors(ours)
    assert {tensor.name for tensor in found} >= theirs.keys() - {"lm_head.weight"}
    for tensor in found:
        value = np.asarray(tensor.to_theirs(flat[tensor.path][tensor.index]), np.float32)
        np.testing.assert_array_equal(value, theirs[tensor.name].float(), err_msg=tensor.name)
    return ours["llm"], theirs


@pytest.mark.parametrize("kind", READ)
def test_weights_are_those_of_transformers(raw, tmp_path, kind):
    folder = tmp_path / "hf"
    shutil.copytree(raw, folder)
    READ[kind](folder)
    assert "head" in read_as_transformers(folder)[0]


@pytest.mark.parametrize("kind", READ_TIED)
def test_tied_weights_are_those_of_transformers(tied, tmp_path, kind):
    folder = tmp_path / "hf"
    shutil.copytree(tied, folder)
    READ_TIED[kind](folder)
    ours, theirs = read_as_transformers(folder)
    assert "head" not in ours and torch.equal(theirs["lm_head.weight"], theirs["model.embed_tokens.weight"])


def adapter(folder):
    """Left beside weights that it was merged into: transformers puts it on top once more."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder)
    before, again = weights(folder), transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert any("lora" in name for name in again.state_dict()) and not any("lora" in name for name in before)


def adapter_alone(folder):
    adapter(folder)
    for name in ("config.json", WHOLE):
        (folder / name).unlink()


def other_head(folder):
    config(folder, tie_word_embeddings=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(theirs.lm_head.weight, theirs.model.embed_tokens.weight)


def without(name):
    def make(folder):
        values = weights(folder)
        del values[name]
        save(folder, values)

    return make


def only(name):
    return lambda folder: (folder / WHOLE).rename(folder / name)


def both_names(folder):
    values = weights(folder)
    save(folder, values | {"norm.weight": values["model.norm.weight"] + 1})


def empty_tensor(folder):
    save(folder, weights(folder) | {"model.norm.weight": torch.zeros(0)})


REFUSED = {
    "an adapter beside": (adapter, r"holds an adapter \(adapter_config.json\), which .*merge_and_unload"),
    "an adapter alone": (adapter_alone, r"holds an adapter \(adapter_config.json\), which .*merge_and_unload"),
    "a head, though the config ties it": (other_head, "holds a lm_head.weight that differs from model.embed_tokens"),
    "no head, though the config does not tie it": (without("lm_head.weight"), "missing: lm_head.weight$"),
    "one tensor under two names": (both_names, r"holds .*norm.weight and .*norm.weight, expected one of them"),
    "names of another model in front": (fronted("language_model."), "would be right without 'language_model.' in fro"),
    "an adapted model saved whole": (fronted("base_model.model."), "would be right without 'base_model.model.' in fr"),
    "a variant only": (only("model.fp16.safetensors"), "model.fp16.safetensors, but not .*with variant='fp16'"),
    "Mistral's own file only": (only("consolidated.safetensors"), "holds its weights as consolidated.safetensors, but"),
    "GGUF only": (only("model-q4.gguf"), "model-q4.gguf, but not .*with gguf_file='model-q4.gguf'"),
    "parts of a distributed save": (beside("shard-00000-model-00001-of-00002.safetensors"), "saved in parts"),
    "a tensor without values": (empty_tensor, r"model.norm.weight is \[0\] and not \[32\]"),
    "more layers than the config says": (lambda folder: config(folder, num_hidden_layers=1), "unknown: .*layers.1"),
    "a float8 model": (stored_as(torch.float8_e4m3fn), "holds weights of type F8_E4M3, expected one of F32"),
    "a float64 model": (stored_as(torch.float64), "holds weights of type F64, expected one of F32"),
    "values that would be rounded": (
        stored_as(torch.float32, dtype="bfloat16"), "of type float32, but its config.json says bfloat16.*--dtype"
    ),
    "values that would be rounded, by the old name": (
        stored_as(torch.bfloat16, dtype=None, torch_dtype="float16"), "of type bfloat16, but .* says float16.*--dtype"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_folders_are_refused(raw, tmp_path, kind):
    folder = tmp_path / "hf"
    shutil.copytree(raw, folder)
    make, message = REFUSED[kind]
    make(folder)
    with pytest.raises(InputError, match=message) as caught:
        from_hf.convert(folder, tmp_path / "llm")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "llm").exists()


def test_a_chosen_dtype_rounds_as_transformers(raw, tmp_path):
    folder = tmp_path / "hf"
    shutil.copytree(raw, folder)
    stored_as(torch.float32, dtype="bfloat16")(folder)
    ours = load_params(folder, "bfloat16")["llm"]["embedding"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    np.testing.assert_array_equal(ours.astype(np.float32), theirs.detach().float())
