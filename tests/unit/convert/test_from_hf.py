"""Conversion from Hugging Face folders, and back through the same table, against transformers."""

import json
import re
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hf_weights import load_params
from places import GOLDEN
from safetensors.torch import load_file, save_file
from tiny_llama import LORA, frozen_shapes, write_llama

from convert import from_hf, merging, safetensors_files
from viavsp_jax import llm_folder
from viavsp_jax.data.prompt import instruction_text, load_prompt
from viavsp_jax.llm_config import llama_config
from viavsp_jax.llm_folder import load_llm, read_conversion
from viavsp_jax.runtime.errors import InputError

GOLDENLLAMA = GOLDEN / "avsp" / "llm_gqa"


def edit(raw, target, change):
    """Copies a folder, with its tensors changed by `change(tensors)` and the config by what that returns."""
    target.mkdir(exist_ok=True)
    weights = load_file(raw / "model.safetensors")
    config = json.loads((raw / "config.json").read_text())
    config |= change(weights) or {}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "dtype, tied, sharded", [("float32", False, True), ("bfloat16", True, False), ("float16", False, False)]
)
def test_round_trip_is_bit_exact(tmp_path, monkeypatch, dtype, tied, sharded, kv_heads):
    monkeypatch.setattr(llm_folder, "CHUNK_BYTES", 500)
    source, folder, back = tmp_path / "hf", tmp_path / "llm", tmp_path / "back"
    theirs = write_llama(source, getattr(torch, dtype), tied, "20KB" if sharded else "1GB", kv_heads)
    assert (source / "model.safetensors.index.json").exists() == sharded
    from_hf.convert(source, folder)
    assert read_conversion(folder)["dtype"] == dtype
    assert read_conversion(folder)["source"] == str(source)
    assert not {file.name for file in folder.iterdir()} - {
        "params", "config.json", "generation_config.json", "conversion.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip

    abstract = {"llm": frozen_shapes(folder, jnp.dtype(dtype))}
    weights = load_llm(folder, abstract["llm"])
    loaded = load_params(source)["llm"]
    jax.tree.map(np.testing.assert_array_equal, weights, loaded)
    assert {str(x.dtype) for x in jax.tree.leaves(weights)} == {dtype}

    back.mkdir()
    safetensors_files.write(
        back, merging.pieces(abstract, lambda tensor: merging.merged(folder, tensor, {}, LORA, "none"))
    )
    exported, state = load_file(back / "model.safetensors"), theirs.state_dict()
    assert exported.keys() == state.keys() - ({"lm_head.weight"} if tied else set())
    for name, value in exported.items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name]), name


def test_cast_and_sharding(raw, tmp_path):
    from_hf.convert(raw, tmp_path / "llm", "bfloat16")
    assert read_conversion(tmp_path / "llm")["dtype"] == "bfloat16"
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), frozen_shapes(raw, jnp.float32)
    )
    weights = load_llm(tmp_path / "llm", wanted)
    expected = load_file(raw / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].bfloat16().float().T
    assert weights["layers"]["up"]["kernel"].sharding == sharding
    np.testing.assert_array_equal(weights["layers"]["up"]["kernel"][1], expected)


def test_hash_depends_on_the_weights_only(raw, llm, tmp_path):
    def move(weights):
        weights["model.norm.weight"][3] += 1e-3

    from_hf.convert(edit(raw, tmp_path / "same", lambda weights: None), tmp_path / "a")
    from_hf.convert(edit(raw, tmp_path / "moved", move), tmp_path / "b")
    hashes = [read_conversion(folder)["sha256"] for folder in (llm, tmp_path / "a", tmp_path / "b")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_names_are_listed_together(raw, tmp_path):
    def change(weights):
        del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(40)
        weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(5)

    with pytest.raises(InputError) as error:
        from_hf.convert(edit(raw, tmp_path / "hf", change), tmp_path / "llm")
    missing, unknown = str(error.value).split("; unknown: ")
    assert missing.endswith("missing: model.layers.1.mlp.up_proj.weight, model.norm.weight")
    assert unknown == "model.layers.0.self_attn.q_proj.bias, model.layers.2.mlp.up_proj.weight"
    assert not (tmp_path / "llm").exists()


def test_inverse_frequencies_and_a_tied_head_are_accepted(tmp_path):
    write_llama(tmp_path / "tied", tied=True)

    def change(weights):
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(5)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    changed = load_params(edit(tmp_path / "tied", tmp_path / "changed", change))
    jax.tree.map(np.testing.assert_array_equal, changed, load_params(tmp_path / "tied"))
    assert "head" not in changed["llm"]


def test_shapes_that_contradict_the_config(raw, tmp_path):
    folder = edit(raw, tmp_path / "hf", lambda weights: {"num_key_value_heads": 4})
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.v_proj\.weight is \[20, 32\] and not \[40, 32\]"):
        from_hf.convert(folder, tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


@pytest.mark.parametrize("value, dtype", [(float("nan"), None), (float("inf"), None), (1e6, "float16")])
def test_values_that_are_not_finite(raw, tmp_path, value, dtype):
    def change(weights):
        weights["model.layers.1.mlp.down_proj.weight"][3, 4] = value

    with pytest.raises(InputError, match="model.layers.1.mlp.down_proj.weight holds values that are not finite"):
        from_hf.convert(edit(raw, tmp_path / "hf", change), tmp_path / "llm", dtype)
    with pytest.raises(InputError, match="not a converted language model"):
        load_llm(tmp_path / "llm", frozen_shapes(raw))
    from_hf.convert(raw, tmp_path / "llm")  # a second try goes over the remains of the first
    jax.tree.map(
        np.testing.assert_array_equal,
        load_llm(tmp_path / "llm", frozen_shapes(raw)),
        load_params(raw)["llm"],
    )


def test_files_that_cannot_be_read(raw, tmp_path):
    (tmp_path / "config.json").write_text((raw / "config.json").read_text())
    with pytest.raises(InputError, match="no model.safetensors"):
        load_params(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"\*\.bin only.*save_pretrained"):
        load_params(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}')
    with pytest.raises(InputError, match="lacks files that its index names: gone.safetensors"):
        load_params(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((raw / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="model.safetensors is not a safetensors file, or damaged"):
        load_params(tmp_path)


def test_mixed_dtypes_need_a_choice(raw, tmp_path):
    def change(weights):
        weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()

    folder = edit(raw, tmp_path / "hf", change)
    with pytest.raises(InputError, match="mixes weights of type BF16, F32: choose one with --dtype"):
        load_params(folder)
    assert load_params(folder, "float32")["llm"]["final_norm"]["scale"].dtype == np.float32


def test_folders_that_are_no_output(raw, llm):
    with pytest.raises(InputError, match="already holds a converted model"):
        from_hf.convert(raw, llm)
    with pytest.raises(InputError, match="is the Hugging Face folder itself"):
        from_hf.convert(raw, raw)


def test_a_raw_folder_is_no_language_model_folder(raw):
    with pytest.raises(InputError, match=re.escape(f"python -m convert.from_hf {shlex.quote(str(raw))} --output")):
        load_llm(raw, frozen_shapes(raw))


def tokenizer_model(folder, llama):
    """A LLaMA with the tokenizer.model that lies beside a tokenizer.json in recorded files."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(llama / name, folder)
    return folder


def test_tokenizer_model_without_the_package(tmp_path, monkeypatch):
    source = tokenizer_model(tmp_path / "hf", GOLDENLLAMA)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = f"{source} holds a tokenizer.model and no tokenizer.json, for which the package sentencepiece is needed"
    with pytest.raises(InputError, match=f"{message}: pip install sentencepiece$"):
        from_hf.convert(source, tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


def test_tokenizer_model_gives_the_same_ids(tmp_path):
    """Read once, by the conversion; later steps need no other package."""
    from_hf.convert(tokenizer_model(tmp_path / "hf", GOLDENLLAMA), tmp_path / "llm")
    (tmp_path / "llm" / "tokenizer.model").unlink()
    ours = load_prompt(tmp_path / "llm", "</s>")
    theirs = load_prompt(GOLDENLLAMA, "</s>")
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    for text in ("xin chào thế giới", "a  b ", "£ 😀", "</s> x", "\n a", "", instruction_text("vi", "vi")):
        ids = ours.label(text)
        assert ids == theirs.label(text)
        assert ours.text(ids) == theirs.text(ids)


@pytest.mark.parametrize(
    "change",
    [lambda whole: b"", lambda whole: whole[:2000], lambda whole: whole[:2001], lambda whole: b"IQ== 0\nIg== 1\n"],
    ids=["empty", "cut off between two tokens", "cut off", "tiktoken's"],
)
def test_a_tokenizer_model_of_another_kind(tmp_path, change):
    """transformers makes a tokenizer of a few tokens of most of these."""
    pytest.importorskip("sentencepiece", reason="of the extra prepare")
    source = tokenizer_model(tmp_path / "hf", GOLDENLLAMA)
    path = source / "tokenizer.model"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=f"{path} is not a whole file of sentencepiece, expected one, or a tokenizer"):
        from_hf.convert(source, tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


def test_a_tokenizer_that_training_would_refuse(raw, tmp_path):
    folder = tmp_path / "hf"
    shutil.copytree(raw, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        InputError, match=rf"the tokenizer in {folder} has token ids up to 90, .* for '\[PAD\]'; give it"
    ):
        from_hf.convert(folder, tmp_path / "llm")
    shutil.copytree(raw, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id is \['</s>'\], expected a token id or"):
        from_hf.convert(folder, tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


def test_a_tokenizer_without_a_begin_token_is_converted(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(raw)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "hf")
    from_hf.convert(tmp_path / "hf", tmp_path / "llm")
    with_begin, without = load_prompt(raw, ""), load_prompt(tmp_path / "llm", "")
    assert without.instruction("vi", "vi") == with_begin.instruction("vi", "vi")[1:]
    assert without.label("xin") == with_begin.label("xin")[1:]


def test_what_the_message_says_to_do_helps(raw, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(raw)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = transformers.AutoModelForCausalLM.from_pretrained(raw)
    model.resize_token_embeddings(len(tokenizer))
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "hf")
    from_hf.convert(tmp_path / "hf", tmp_path / "llm")
    prompt = load_prompt(tmp_path / "llm", "</s>")
    prompt.check_fits(llama_config(tmp_path / "llm").vocab_size)
    assert prompt.pad_id == 90


def test_a_model_without_a_tokenizer_is_converted_with_a_note(raw, tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(raw / name, tmp_path / "hf")
    from_hf.convert(tmp_path / "hf", tmp_path / "llm")
    assert "note: " in (shown := capsys.readouterr().err) and "holds no tokenizer.json or tokenizer.model" in shown
    assert read_conversion(tmp_path / "llm")["dtype"] == "float32"
