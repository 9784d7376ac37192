"""convert.check_llm on folders as strangers have them: right ones, wrong ones, and what it cannot use."""

import dataclasses
import json

import pytest
import tiny_tokenizers
import torch
import transformers
from llm_kinds import KINDS, make
from tiny_llama import write_tokenizer

from convert import check_llm
from viavsp_jax.models.rope import RopeScaling

USUAL = ("llama 3.2", "mistral with a window", "qwen3", "gemma 3")


def write(folder, kind, dtype=torch.float32, tokenizer=None):
    """A folder of a kind; where config.json says Qwen, transformers reads every tokenizer as one of Qwen's."""
    tokenizer = tokenizer or (tiny_tokenizers.qwen if kind.startswith("qwen") else write_tokenizer)
    tokenizer(folder)
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    model = make(kind, vocab_size=size + 7, bos_token_id=1, eos_token_id=[2, 7]).to(dtype)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=[2, 7])
    model.save_pretrained(folder)
    tokenizer(folder)  # its generation_config.json, if it has one
    return folder


def run(monkeypatch, capsys, *arguments):
    """Status, and what is written on standard output and error."""
    monkeypatch.setattr("sys.argv", ["check_llm", *map(str, arguments)])
    with pytest.raises(SystemExit) as status:
        check_llm.main()
    return status.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    "kind", [kind if kind in USUAL else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS]
)
def test_every_kind_is_safe(tmp_path, monkeypatch, capsys, kind):
    (tmp_path / "prompts.txt").write_text("xin chào các bạn\n\nhôm nay trời đẹp\nmột\n")
    folder = write(tmp_path, kind)
    status, said, error = run(monkeypatch, capsys, folder, "--prompts", tmp_path / "prompts.txt")
    assert status == 0, said
    assert "safe to train here" in said and "not safe" not in said and "Traceback" not in error
    assert said.count("3 of 3") == 4
    assert (
        "no begin token; ends with '<|im_end|>', '<|endoftext|>'" if "qwen" in kind else "ends with '</s>', "
    ) in said


@pytest.mark.parametrize("name", ["llama3", "gpt2", "unigram_without_begin"])
def test_tokenizers_of_other_kinds(tmp_path, monkeypatch, capsys, name):
    folder = write(tmp_path, "llama", tokenizer=tiny_tokenizers.KINDS[name])
    (tmp_path / "prompts.txt").write_text("xin chào các bạn\nhôm nay trời đẹp\n")
    status, said, _ = run(monkeypatch, capsys, folder, "--prompts", tmp_path / "prompts.txt")
    assert status == 0, said


def test_a_model_that_is_computed_otherwise_is_not_safe(tmp_path, monkeypatch, capsys):
    folder, read = write(tmp_path, "llama 3.2", torch.bfloat16), check_llm.llama_config
    (tmp_path / "prompts.txt").write_text("xin chào các bạn")
    monkeypatch.setattr(
        check_llm, "llama_config", lambda path: dataclasses.replace(read(path), rope_scaling=RopeScaling())
    )
    status, said, _ = run(monkeypatch, capsys, folder, "--prompts", tmp_path / "prompts.txt")
    assert status == 1 and "NOT OK  logits, largest error / largest" in said
    assert "not safe to train here: logits" in said


def test_folders_that_cannot_be_used(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path, "qwen2")
    (tmp_path / "empty.txt").write_text("\n \n")
    for arguments, message in (
        ((tmp_path / "none",), "none/config.json does not exist"),
        ((folder, "--prompts", tmp_path / "none.txt"), "none.txt: cannot be read"),
        ((folder, "--prompts", tmp_path / "empty.txt"), "empty.txt: has no line with text"),
    ):
        status, _, error = run(monkeypatch, capsys, *arguments)
        assert status == 2 and message in error and "Traceback" not in error
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    status, said, _ = run(monkeypatch, capsys, folder)
    assert status == 1 and "NOT OK  tokenizer" in said and "greedy search, same tokens         6 of 6" in said
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu", "is_causal": False}))
    status, _, error = run(monkeypatch, capsys, folder)
    assert status == 2 and "hidden_act is 'relu'" in error and "is_causal is False" in error
