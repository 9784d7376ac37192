"""Bad folders of a language model, as training, evaluation and compilation open them."""

import json
import os
import shutil

import pytest
from bad_input import REFUSED, Bad, each
from small_run import small_config
from transformers import AutoTokenizer

from viavsp_jax.experiment import load_experiment
from viavsp_jax.runtime.errors import InputError

ENTRY = "language model"
OWN_CODE = b'{"auto_map": {"AutoTokenizer": ["x.Y", null]}, "tokenizer_class": "Y"}'


def bad(wrong, words, make):
    return Bad(ENTRY, wrong, REFUSED, words, make)


def config(**changes):
    """Changes config.json; None takes a field away."""

    def make(folder):
        values = json.loads((folder / "config.json").read_text()) | changes
        values = {name: value for name, value in values.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(values))

    return make


def file(name, content):
    """Another content or, for None, no such file."""

    def make(folder):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)

    return make


def tokenizer(change):
    return lambda folder: (folder / "tokenizer.json").write_text(change((folder / "tokenizer.json").read_text()))


def without_end(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace('"</s>"', '"<end>"'))


def several_parts(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": values}))


def pad_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


def renamed(text):
    return text.replace('"</s>"', '"<end>"')


def dtype(folder):
    record = json.loads((folder / "conversion.json").read_text())
    (folder / "conversion.json").write_text(json.dumps(record | {"dtype": "int3"}))


def chunk(change):
    """Changes the first chunk of a weight."""

    def make(folder):
        path = sorted(x for x in (folder / "params" / "layers.q.kernel" / "c").rglob("*") if x.is_file())[0]
        change(path)

    return make


def changed(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def other_array(folder):
    shutil.rmtree(folder / "params" / "layers.q.kernel")
    shutil.copytree(folder / "params" / "layers.down.kernel", folder / "params" / "layers.q.kernel")


READ_FIRST = [
    bad("no such folder", "config.json does not exist", shutil.rmtree),
    bad("no config.json", "config.json does not exist", file("config.json", None)),
    bad(
        "config.json is cut off",
        "is not the config of a language model: JSONDecodeError",
        file("config.json", b'{"hidden'),
    ),
    bad("config.json is a list", "is not the config of a language model: AttributeError", file("config.json", b"[]")),
    bad(
        "config.json is not UTF-8",
        "is not the config of a language model: UnicodeDecodeError",
        file("config.json", b'{"\xff'),
    ),
    bad("config.json is nested too deeply", "language model: RecursionError", file("config.json", b"[" * 99_999)),
    bad(
        "config.json lacks a field",
        "is not the config of a language model: it lacks vocab_size",
        config(vocab_size=None),
    ),
    bad("model of another architecture", "model_type is 'gemma2', expected one of", config(model_type="gemma2")),
    bad("model of several parts", "(it is a model of several parts with a 'llama' inside", several_parts),
    bad(
        "rope of an unknown type",
        "rope type is 'dynamic', expected one of default, linear, llama3, yarn",
        config(rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
    ),
    bad("sliding-window attention", "sliding_window is 8, only None is supported", config(sliding_window=8)),
    bad(
        "quantized weights",
        "the weights are quantized (quantization_config: gptq)",
        config(quantization_config={"quant_method": "gptq"}),
    ),
    bad("no attention heads", "num_heads is 0, expected a positive", config(num_attention_heads=0, head_dim=None)),
    bad(
        "negative size",
        "hidden_size is -64, expected a positive whole number",
        config(hidden_size=-64, head_dim=16),
    ),
    bad("size given as text", "vocab_size is '678', expected a positive whole number", config(vocab_size="678")),
    bad("fractional size", "num_layers is 2.5, expected a positive", config(num_hidden_layers=2.5)),
    bad("enormous size", "vocab_size is 1000000000000, expected", config(vocab_size=10**12)),
    bad(
        "epsilon is not a number",
        "rms_norm_eps is nan, expected a number of at least 0",
        config(rms_norm_eps=float("nan")),
    ),
    bad(
        "query heads not divisible by KV heads", "expected a multiple of num_kv_heads 3", config(num_key_value_heads=3)
    ),
    bad("odd head width", "head_dim is 7, expected an even number", config(head_dim=7)),
    bad("unconverted model", "is not a converted language model", file("conversion.json", None)),
    bad("conversion.json is cut off", "conversion.json is damaged, convert again", file("conversion.json", b"{")),
    bad("conversion.json names no dtype", "conversion.json is damaged, convert again", dtype),
    bad("no tokenizer", "holds no tokenizer.json or tokenizer.model", file("tokenizer.json", None)),
    bad("tokenizer.json is cut off", "cannot be read: Expecting", tokenizer(lambda text: text[: len(text) // 2])),
    bad("tokenizer.json is a list", "cannot be read: ", tokenizer(lambda text: "[]")),
    bad(
        "tokenizer of an unknown kind",
        "cannot be read: data did not match any variant",
        tokenizer(lambda text: json.dumps(json.loads(text) | {"model": {"type": "other"}})),
    ),
    bad("tokenizer with more tokens than the model", "has token ids up to 677, expected less", config(vocab_size=600)),
    bad("end token beyond the model's vocabulary", "has token ids up to 678, expected less", tokenizer(renamed)),
    bad("pad token beyond the model's vocabulary", "the model has no embedding for '[PAD]'", pad_token),
    bad(
        "generation_config.json names no token ids",
        "eos_token_id is </s>, expected a token id or a list of them",
        file("generation_config.json", b'{"eos_token_id": "</s>"}'),
    ),
    bad("tokenizer without the end token", "no token '</s>' (config.llm.end_token)", without_end),
    bad("tokenizer that needs its own code", "cannot be read: The repository", file("tokenizer_config.json", OWN_CODE)),
]
WEIGHTS = [
    bad("a part of a weight is missing", "layers/q/kernel cannot be read", chunk(lambda path: path.unlink())),
    bad("a part of a weight is cut off", "Not enough data", chunk(lambda path: os.truncate(path, 40))),
    bad("a part of a weight is changed", "Digest mismatch", chunk(changed)),
    bad("a weight replaced by another weight", "the weight layers/q/kernel is", other_array),
    bad("config.json of another model", "as config.json says", config(intermediate_size=48)),
]


@pytest.fixture
def given(folders, tmp_path):
    """A config, and the folder of its language model, both one's own."""
    shutil.copytree(folders[0], tmp_path / "llm")
    return small_config(tmp_path / "llm", folders[1]), tmp_path / "llm"


@each(READ_FIRST)
def test_a_bad_folder_is_refused_before_anything_large_is_read(given, monkeypatch, case):
    settings, folder = given
    case.make(folder)
    monkeypatch.setattr("builtins.input", None)  # nothing is asked for
    with pytest.raises(InputError) as caught:
        load_experiment(settings)
    assert case.words in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


@each(WEIGHTS)
def test_bad_weights_are_refused(given, case):
    settings, folder = given
    case.make(folder)
    experiment = load_experiment(settings)
    with pytest.raises(InputError) as caught:
        experiment.load_frozen()
    assert case.words in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)
