"""What config.json says of a LLaMA, against what transformers makes of the same file."""

import json

import numpy as np
import pytest
import torch
import transformers

from viavsp_jax.llm_config import llama_config
from viavsp_jax.runtime.errors import InputError

IDS = torch.tensor([[1, 5, 9, 30, 2, 7, 8, 20]])
DEFAULT, LINEAR = {"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 12,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder of a random LLaMA, its config, and what transformers computes with it."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, initializer_range=0.5, rms_norm_eps=3e-3,
        rope_parameters=DEFAULT | {"rope_theta": 37.0},
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    given = json.loads((folder / "config.json").read_text())
    return folder, given, computed(folder)


def computed(folder):
    """Logits, and what is generated after the prompt, which also asks the cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        generated = model.generate(IDS, max_new_tokens=12, do_sample=False, eos_token_id=None)
        return model(IDS).logits.float().numpy(), generated.numpy()


@pytest.fixture
def write(plain, tmp_path):
    """Writes a folder with some fields of its config changed or, for ..., taken away."""

    def write(change):
        config = {name: value for name, value in (plain[1] | change).items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes((plain[0] / "model.safetensors").read_bytes())
        return tmp_path

    return write


ACCEPTED = [
    {},
    {"rope_parameters": ..., "rope_theta": 5.0},
    {"rope_parameters": ..., "rope_theta": 5.0, "rope_scaling": None},
    {"rope_parameters": ..., "rope_scaling": DEFAULT},
    {"rope_parameters": ...},
    {"rope_parameters": {}, "rope_theta": 5},
    {"rope_parameters": DEFAULT, "rope_theta": 5.0},
    {"rope_parameters": {"type": "default", "rope_theta": 5.0}},
    {"rope_parameters": DEFAULT | {"rope_theta": 5.0, "factor": 4.0}},
    {"rope_parameters": LINEAR | DEFAULT | {"rope_theta": 5.0}},
    {"rope_scaling": LINEAR},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_parameters": LINEAR | {"rope_theta": 37.0}},
    {"rope_parameters": ..., "rope_theta": 37.0, "rope_scaling": LINEAR},
    {"rope_parameters": ..., "rope_theta": 37.0, "rope_scaling": LLAMA3},
    {"rope_parameters": LLAMA3},
    {"rope_parameters": YARN},
    {"rope_parameters": YARN | {"factor": None, "truncate": False, "beta_slow": 3}},
    {"rope_parameters": YARN | {"mscale": 1.5, "mscale_all_dim": 0.5}},
    {"rope_parameters": YARN | {"attention_factor": 0.7}},
    {"rope_theta": 5.0},  # beside rope_parameters, which go before it
    {"rope_scaling": DEFAULT},  # beside them too, and before them
    {"rope_scaling": DEFAULT | {"rope_theta": 7.0}},
    {"rope_scaling": DEFAULT, "rope_theta": 9.0},
    {"rope_scaling": {}},
    {"rope_type": "linear", "factor": 4.0},
    {"partial_rotary_factor": 0.5},
    {"rms_norm_eps": ...},
    {"hidden_act": "swish"},
    {"hidden_act": ..., "attention_bias": ..., "mlp_bias": ..., "tie_word_embeddings": ...},
    {"head_dim": None, "hidden_size": 16},
    {"num_key_value_heads": None},
    {"num_key_value_heads": ...},
    {"pretraining_tp": 2, "attention_dropout": 0.5, "max_position_embeddings": 4, "chunk_size_feed_forward": 2},
    {"architectures": ["LlamaForSequenceClassification"]},
    {"auto_map": {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Y"}},
    {"sliding_window": None, "quantization_config": None, "layer_types": None},
]


@pytest.mark.parametrize("change", ACCEPTED, ids=str)
def test_it_is_resolved_as_by_transformers(write, change):
    folder = write(change)
    ours, theirs = llama_config(folder), transformers.AutoConfig.from_pretrained(folder)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.num_layers, ours.num_heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    frequencies = ours.rope_scaling.frequencies(ours.rope_theta, ours.head_dim)
    np.testing.assert_allclose(rotary.inv_freq, frequencies, rtol=1e-6)
    assert rotary.attention_scaling == pytest.approx(ours.rope_scaling.amplitude, rel=1e-12)


# With the message, and what is another in transformers: its weights, logits, generated text, or it ends in an error.
REFUSED = [
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4}, "dynamic", "logits"),
    ({"rope_parameters": LLAMA3 | {"factor": None}}, "factor.*is None|Missing|factor", "error"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "Missing required keys .* 'factor'|high_freq_factor", "error"),
    ({"rope_parameters": LLAMA3 | {"low_freq_factor": 9.0}}, "high_freq_factor is 4.0, expected more than", "logits"),
    ({"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5, only 1.0", "error"),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0, "short_factor": [1, 1, 1], "long_factor": [2, 2, 2],
                          "original_max_position_embeddings": 4}}, "rope type is 'longrope', expected", "logits"),
    ({"rope_parameters": {"rope_type": None}}, "rope type is None", "error"),
    ({"rope_parameters": ["default"]}, "is not the config of a language model", "error"),
    ({"rope_parameters": {"rope_theta": "abc"}}, "is not the config of a language model", "error"),
    ({"rope_parameters": ..., "rope_theta": None}, "is not the config of a language model", "error"),
    ({"rope_parameters": {"rope_theta": -5.0}}, "rope_theta is -5.0, expected a number above 0", "logits"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported", "logits"),
    ({"is_causal": False}, "is_causal is False, only True is supported", "logits"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder is True", "error"),
    ({"sliding_window": 3}, "sliding_window is 3, only None is supported", "text"),
    ({"attention_chunk_size": 3}, "attention_chunk_size is 3", "text"),
    ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}, "sliding_window is 3", "text"),
    ({"per_layer_config": {"0": {"rms_norm_eps": 0.5}}}, "per_layer_config is ", "error"),
    ({"attribute_map": {"rms_norm_eps": "initializer_range"}}, "attribute_map is ", "logits"),
    ({"transformers_weights": "other.safetensors"}, "transformers_weights is 'other.safetensors'", "error"),
    ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files is ", "error"),
    ({"fusion_config": {"x": True}}, "fusion_config is ", "error"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized \(quantization_config: gptq\)", "error"),
    ({"head_dim": 7}, "head_dim is 7, expected an even number", "error"),
    ({"num_attention_heads": 3}, "num_heads is 3, expected a multiple of num_kv_heads 2", "error"),
    ({"hidden_size": 18, "num_key_value_heads": 4}, "is not the config of a language model: .*not a multiple", "error"),
    ({"tie_word_embeddings": "yes"}, "is not the config of a language model: .*tie_word_embeddings", "error"),
    ({"rms_norm_eps": "1e-6"}, "is not the config of a language model: .*rms_norm_eps", "error"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0, expected a number of at least 0", "logits"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message", "other"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_what_is_not_done_here_is_refused(plain, write, change, message, other):
    """And for a reason: transformers computes something else with it."""
    folder = write(change)
    with pytest.raises(InputError, match=message) as caught:
        llama_config(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    if other == "error":
        with pytest.raises(Exception):  # noqa: B017, PT011 - of many kinds
            computed(folder)
        return
    if other == "weights":
        _, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert info["missing_keys"]
        return
    logits, text = computed(folder)
    if other == "logits":
        assert not np.allclose(logits, plain[2][0], atol=1e-2)
    else:
        np.testing.assert_array_equal(logits, plain[2][0])
        assert (text != plain[2][1]).any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.GPT2Config(), "model_type is 'gpt2', expected one of llama, mistral, qwen2, qwen3, gemma3_text$"),
        (transformers.MixtralConfig(), "model_type is 'mixtral', expected one of"),
        (transformers.Gemma2Config(), "model_type is 'gemma2', expected one of"),
        (transformers.Qwen3MoeConfig(), "model_type is 'qwen3_moe', expected one of"),
        (transformers.LlavaConfig(), r"model_type is 'llava', expected one of .*'llama' inside: write its"),
        (transformers.Qwen2VLConfig(), "model_type is 'qwen2_vl', .*'qwen2_vl_text' inside"),
    ],
    ids=["GPT-2", "Mixtral", "Gemma 2", "Qwen3-MoE", "LLaVA", "Qwen2-VL"],
)
def test_other_models_are_named(tmp_path, config, message):
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}/config.json: {message}"):
        llama_config(tmp_path)


def test_a_config_of_no_model(tmp_path):
    (tmp_path / "config.json").write_text('{"feature_width": 3}')
    with pytest.raises(InputError, match="model_type is None, expected one of"):
        llama_config(tmp_path)


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_sizes_must_be_there(write, name):
    """transformers would take those of LLaMA-7B."""
    with pytest.raises(InputError, match=f"is not the config of a language model: it lacks {name}$"):
        llama_config(write({name: ...}))


@pytest.mark.parametrize("name", ["num_labels", "vocabulary", "__class__", "rope_parameters_"])
def test_other_fields_do_not_get_to_transformers(write, name):
    assert llama_config(write({name: 10**18})) == llama_config(write({}))


def test_all_that_is_not_supported_is_in_one_sentence(write):
    change = {"hidden_act": "relu", "is_causal": False, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    with pytest.raises(InputError) as caught:
        llama_config(write(change | {"attention_chunk_size": 3}))
    for problem in (
        "hidden_act is 'relu'",
        "is_causal is False",
        "rope type is 'dynamic'",
        "attention_chunk_size is 3",
    ):
        assert problem in str(caught.value)


# Of other families, with what says why. Each is a field that transformers' own class reads.
OF_FAMILIES = [
    ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is "),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0, expected a positive whole number"),
    ("mistral", {"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": -3, "max_window_layers": 0}, "sliding_window is -3"),
    ("qwen2", {"layer_types": ["chunked_attention", "full_attention"]}, "chunked_attention|layer_types"),
    ("qwen3", {"layer_types": ["full_attention"]}, "layer_types|num_hidden_layers"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, only None"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, only None"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True, only False"),
    ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu', only 'gelu_pytorch_tanh'"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": LINEAR}}, "with a window"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "change", "message"), OF_FAMILIES, ids=str)
def test_what_a_family_has_besides_is_refused(tmp_path, plain, family, change, message):
    sizes = {name: plain[1][name] for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads",
    )}  # fmt: skip
    config = {"model_type": family, "head_dim": 4, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert llama_config(tmp_path).num_layers == 2
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        llama_config(tmp_path)
