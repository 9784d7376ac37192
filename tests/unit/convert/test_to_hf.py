"""Exports, loaded by peft and transformers, against our own logits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from flax import nnx
from safetensors.torch import load_file
from tiny_llama import DECODING, FEATURES, LORA, WHOLE, frozen_shapes, structure, write_checkpoints, write_llama

from convert import from_hf, safetensors_files, to_hf
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.llm_folder import llama_config, load_llm
from viavsp_jax.runtime.errors import InputError


def our_logits(llm, trainable, tokens):
    """The whole model on text only, float32[B, S, V]."""
    graph = structure(llm)
    frozen = {"llm": load_llm(llm, frozen_shapes(llm))}

    @jax.jit
    def run(trainable, frozen):
        model = nnx.merge(graph, trainable, frozen)
        positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
        x = model.llm(model.llm.embed(tokens), jnp.ones(tokens.shape, int), positions, None, "none")
        return model.llm.logits(x)

    return run(trainable, frozen)


def test_peft_and_transformers_load_the_export(raw, llm, trained, export):
    tokens = np.random.default_rng(0).integers(0, llama_config(llm).vocab_size, (2, 9))
    expected = our_logits(llm, trained[1], tokens)
    base = transformers.AutoModelForCausalLM.from_pretrained(raw)
    merged = transformers.AutoModelForCausalLM.from_pretrained(export / "merged")
    with torch.no_grad():
        plain = base(torch.tensor(tokens)).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(base, export / "adapter").eval()
        np.testing.assert_allclose(adapted(torch.tensor(tokens)).logits, expected, atol=WHOLE, rtol=WHOLE)
        np.testing.assert_allclose(merged(torch.tensor(tokens)).logits, expected, atol=WHOLE, rtol=WHOLE)
    assert np.abs(plain - expected).max() > 0.1, "the adapter must change the output"
    config = json.loads((export / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(raw) and config["lora_alpha"] == 6
    saved = peft.get_peft_model_state_dict(adapted)
    written = load_file(export / "adapter" / "adapter_model.safetensors")
    assert saved.keys() == written.keys() and all(torch.equal(saved[name], written[name]) for name in saved)


def test_projector_and_settings(trained, export):
    projector = load_file(export / "projector.safetensors")
    np.testing.assert_array_equal(projector["avfeat_to_llm.weight"].T, trained[1]["projector"]["kernel"])
    np.testing.assert_array_equal(projector["avfeat_to_llm.bias"], trained[1]["projector"]["bias"])
    settings = json.loads((export / "config.json").read_text())
    assert settings["feature_width"] == FEATURES and settings["step"] == 3
    assert settings["decoding"] == dataclasses.asdict(DecodingConfig(**DECODING))
    assert transformers.AutoConfig.from_pretrained(export / "merged").dtype == torch.float32
    generation = transformers.GenerationConfig.from_pretrained(export / "merged")
    assert generation.eos_token_id == 2 and generation.repetition_penalty in (None, 1.0)


def test_merged_model_in_several_files(llm, trained, export, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "FILE_BYTES", 30_000)
    to_hf.export(trained[0], tmp_path / "hf", "3", merge=True)
    files = sorted((tmp_path / "hf" / "merged").glob("model-*-of-*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 32_000 for file in files)
    many, one = (
        transformers.AutoModelForCausalLM.from_pretrained(folder / "merged").state_dict()
        for folder in (tmp_path / "hf", export)
    )
    assert many.keys() == one.keys() and all(torch.equal(many[name], one[name]) for name in one)


def test_adapters_trained_on_nf4_are_merged_into_what_nf4_holds(tmp_path):
    """Against bitsandbytes, whose sums are in another order: 1e-5 of a weight at most."""
    theirs = write_llama(tmp_path / "raw", hidden_size=64, intermediate_size=128, head_dim=16)
    from_hf.convert(tmp_path / "raw", tmp_path / "llm")
    trainable = write_checkpoints(tmp_path / "work", tmp_path / "llm", "nf4")
    to_hf.export(tmp_path / "work", tmp_path / "hf", merge=True)
    merged = load_file(tmp_path / "hf" / "merged" / "model.safetensors")
    assert merged.keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        expected = weight
        if name.endswith("_proj.weight"):
            packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
            expected = dequantize_4bit(packed, state)
            assert (expected - weight).abs().max() > 0.02, "4 bits must show"
            layer, kind = int(name.split(".")[2]), name.split(".")[-2].removesuffix("_proj")
            if kind in "qkv":
                a, b = (np.array(trainable["llm"]["layers"][kind]["lora"][side][layer]) for side in "ab")
                expected = expected + LORA.scale * torch.from_numpy(a @ b).T
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_adapters_trained_on_int8_are_exported_as_those_of_weights_in_full(llm, export, tmp_path):
    write_checkpoints(tmp_path / "work", llm, "int8")
    to_hf.export(tmp_path / "work", tmp_path / "hf", merge=True)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "merged/model.safetensors"):
        assert (tmp_path / "hf" / name).read_bytes() == (export / name).read_bytes(), name
    assert "| language model in training | int8 |" in (tmp_path / "hf" / "README.md").read_text()


def test_steps_and_what_is_not_there(trained, tmp_path):
    workdir, trainable = trained
    to_hf.export(workdir, tmp_path / "hf", "latest")
    bias = load_file(tmp_path / "hf" / "projector.safetensors")["avfeat_to_llm.bias"]
    np.testing.assert_array_equal(bias, trainable["projector"]["bias"] + 2)
    assert not (tmp_path / "hf" / "merged").exists() and not (tmp_path / "hf.partial").exists()
    with pytest.raises(InputError, match=r"no checkpoint 4: expected best, latest or one of \[3, 5\]"):
        to_hf.export(workdir, tmp_path / "hf", "4")
    with pytest.raises(InputError, match="holds no checkpoints: train first"):
        to_hf.export(tmp_path, tmp_path / "hf")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="is not empty and no earlier export"):
        to_hf.export(workdir, tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "keep me"
