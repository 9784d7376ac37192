"""Other families than LLaMA, with adapters on all projections: converted, exported, and loaded as a stranger would."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from flax import nnx
from llm_kinds import KINDS as ALL
from llm_kinds import make
from safetensors.torch import load_file
from tiny_llama import FEATURES, WHOLE, write_checkpoints, write_tokenizer

from convert import from_hf, to_hf
from viavsp_jax.llm_folder import llama_config, load_llm
from viavsp_jax.models.lora import PROJECTIONS, LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.state import abstract_model

LORA = LoRAConfig(2, 3.0, 0.05, PROJECTIONS, rslora=True)
KINDS = ("llama 3.2", "mistral with a window", "qwen2", "qwen3, biases and windows", "gemma 3")


def write(folder, kind, dtype=torch.float32, files=types.MappingProxyType({}), **changes):
    """A random model of a kind with a tokenizer that has fewer tokens than the model embeddings."""
    folder.mkdir()
    size = write_tokenizer(folder)
    model = make(kind, vocab_size=size + 7, bos_token_id=1, eos_token_id=2, **changes).to(dtype)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder, **files)
    return model


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """The kind, its Hugging Face folder, the converted one, the trained weights and the export."""
    root = tmp_path_factory.mktemp("family")
    write(root / "raw", request.param)
    from_hf.convert(root / "raw", root / "llm")
    trainable = write_checkpoints(root / "work", root / "llm", lora=LORA)
    to_hf.export(root / "work", root / "hf", merge=True)
    return request.param, root / "raw", root / "llm", trainable, root / "hf"


def test_peft_and_transformers_compute_what_we_do(exported):
    _, raw, llm, trainable, export = exported
    model = ModelConfig(llama_config(llm), LORA, FEATURES, jnp.float32)
    structure, _, frozen = abstract_model(model)
    tokens = np.random.default_rng(0).integers(0, model.llama.vocab_size, (2, 12))

    @jax.jit
    def run(trainable, frozen):
        llm = nnx.merge(structure, trainable, frozen).llm
        positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
        return llm.logits(llm(llm.embed(tokens), jnp.ones(tokens.shape, int), positions, None, "none"))

    expected = run(trainable, {"llm": load_llm(llm, frozen["llm"])})
    base = transformers.AutoModelForCausalLM.from_pretrained(raw)
    merged = transformers.AutoModelForCausalLM.from_pretrained(export / "merged")
    assert type(merged) is type(base)
    largest = np.abs(expected).max()
    with torch.no_grad():
        plain = base(torch.tensor(tokens)).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(base, export / "adapter").eval()
        for theirs in (adapted, merged):
            found = theirs(torch.tensor(tokens)).logits
            np.testing.assert_allclose(found / largest, expected / largest, atol=WHOLE)
    assert np.abs(plain - expected).max() > 0.1 * largest, "the adapter must change the output"
    config = json.loads((export / "adapter" / "adapter_config.json").read_text())
    assert config["use_rslora"] and len(config["target_modules"]) == 7
    assert merged.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=5, do_sample=False).shape[1] > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "kind", [kind if kind in KINDS else pytest.param(kind, marks=pytest.mark.full) for kind in ALL]
)
def test_weights_go_there_and_back_bit_for_bit(tmp_path, kind, dtype):
    """With adapters of zeros; from several files, if they are of bfloat16."""
    files = {"max_shard_size": "20KB"} if dtype == torch.bfloat16 else {}
    before = write(tmp_path / "raw", kind, dtype, files).state_dict()
    assert len(list((tmp_path / "raw").glob("*.safetensors"))) == 1 or files
    from_hf.convert(tmp_path / "raw", tmp_path / "llm")
    lora = LoRAConfig(1, 1e-30)
    write_checkpoints(tmp_path / "work", tmp_path / "llm", lora=lora)
    to_hf.export(tmp_path / "work", tmp_path / "hf", merge=True)
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf" / "merged", dtype=dtype).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_biases_stay_whole_where_kernels_are_nf4(tmp_path):
    theirs = write(tmp_path / "raw", "qwen2", hidden_size=64, intermediate_size=128).state_dict()
    from_hf.convert(tmp_path / "raw", tmp_path / "llm")
    write_checkpoints(tmp_path / "work", tmp_path / "llm", "nf4", LoRAConfig(1, 1e-30))
    to_hf.export(tmp_path / "work", tmp_path / "hf", merge=True)
    merged = load_file(tmp_path / "hf" / "merged" / "model.safetensors")
    for name, weight in merged.items():
        expected = theirs[name]
        if name.endswith("_proj.weight"):
            packed, state = quantize_4bit(expected, blocksize=64, compress_statistics=True, quant_type="nf4")
            expected = dequantize_4bit(packed, state)
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-5, err_msg=name)
