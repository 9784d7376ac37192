"""A random LLaMA in Hugging Face form, the same converted, trained and exported; shared by the tests of convert/."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
import torch
import transformers
from odd_folders import ODD

from convert import from_hf, to_hf
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data.prompt import REFERENCE, instruction_text, load_prompt
from viavsp_jax.experiment import prompt_fits
from viavsp_jax.llm_folder import llama_config
from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.models.viavsp import ModelConfig
from viavsp_jax.state import TrainState, abstract_model

WIDTH, FEATURES, WHOLE = 32, 6, 1e-4
DECODING = {"max_new_tokens": 7}
LORA = LoRAConfig(rank=2, alpha=6.0, dropout=0.05)
SENTENCES = ["xin chào các bạn", "hôm nay trời đẹp", "một hai ba bốn"]


def write_tokenizer(folder):
    text = SENTENCES + [instruction_text("vi", "vi")]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.decoder = tokenizers.decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    model.train_from_iterator(text, tokenizers.trainers.BpeTrainer(vocab_size=90, special_tokens=special))
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.save_pretrained(folder)
    return len(wrapped)


def write_llama(folder, dtype=torch.float32, tied=False, shard_size="1GB", kv_heads=2, **settings):
    """A random LLaMA as transformers saves it, with a tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=kv_heads,
        rms_norm_eps=3e-3, rope_parameters={"rope_type": "default", "rope_theta": 37.0}, tie_word_embeddings=tied,
        initializer_range=0.3, **({
            "vocab_size": write_tokenizer(folder), "hidden_size": WIDTH, "intermediate_size": 48, "head_dim": 10,
        } | settings),
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    # A penalty that decoding here must not inherit.
    model.generation_config = transformers.GenerationConfig(repetition_penalty=1.7, eos_token_id=0)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp(ODD)
    write_llama(folder)
    return folder


@pytest.fixture(scope="session")
def llm(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp(ODD) / "converted"
    from_hf.convert(raw, folder)
    return folder


def frozen_shapes(folder, dtype=jnp.float32):
    return abstract_model(ModelConfig(llama_config(folder), LORA, FEATURES, dtype))[2]["llm"]


def structure(llm):
    """The model's structure around a converted language model."""
    return abstract_model(ModelConfig(llama_config(llm), LORA, FEATURES, jnp.float32))[0]


def write_checkpoints(workdir, llm, quantization="none", lora=LORA, end_token="</s>", prompt=REFERENCE):
    """Saves random learnt weights as those of two steps, the first the better one; returns these."""
    shapes = abstract_model(ModelConfig(llama_config(llm), lora, FEATURES, jnp.float32))[1]
    rng = np.random.default_rng(0)
    trainable = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.3), jnp.float32), shapes)
    config = {
        "dtype": "float32",
        "llm": {"path": str(llm), "end_token": end_token, "quantization": quantization},
        "prompt": dataclasses.asdict(prompt),
        "lora": dataclasses.asdict(lora),
        "data": {"feature_width": FEATURES},
        "evaluate": {"decoding": DECODING},
    }
    model = {"language model sha256": json.loads((llm / "conversion.json").read_text())["sha256"]}
    model |= prompt_fits(load_prompt(llm, end_token, prompt))
    checkpoints = Checkpoints(workdir, keep=1)
    for step, accuracy in ((3, 0.9), (5, 0.1)):
        shifted = jax.tree.map(lambda x, step=step: x + (step - 3), trainable)
        state = TrainState(jnp.int32(step), shifted, optax.sgd(0.1).init(shifted))
        checkpoints.save(state, None, json.dumps(config), model, {}, {"accuracy": accuracy})
    checkpoints.close()
    return trainable


@pytest.fixture(scope="session")
def trained(llm, tmp_path_factory):
    """A work folder with checkpoints of random learnt weights, and those of the best one."""
    workdir = tmp_path_factory.mktemp(ODD)
    return workdir, write_checkpoints(workdir, llm)


@pytest.fixture(scope="session")
def export(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp(ODD) / "hf"
    to_hf.export(trained[0], folder, merge=True)
    return folder
