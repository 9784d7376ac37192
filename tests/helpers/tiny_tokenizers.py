"""Tokenizers of the kinds that language models come with, small and made on the spot from a few sentences."""

import io
import json
import pathlib
from collections.abc import Callable

import sentencepiece
import tokenizers
import transformers
from tiny_llama import SENTENCES
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from viavsp_jax.data.prompt import RECOGNITION

TEXTS = [*SENTENCES, RECOGNITION, "Write what is said: ", "[INST] user system assistant model [/INST]", "\n\n  \n"]
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
QWEN = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
GEMMA = """{{ bos_token }}{%- for message in messages %}
    {{- '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}"""
INST = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endfor %}"


def _byte_level(special: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE as Llama 3 and Qwen have it; the special tokens come last."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([tokenizers.AddedToken(one, special=True, normalized=False) for one in special])
    return tokenizer


def _spaces(special: list[str], normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    """BPE in which ▁ stands for a space, and a token for every byte; the special tokens come first."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    first = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [text.replace(" ", " ▁").split(" ") for text in TEXTS]  # trained word by word, as SentencePiece does
    trainer = trainers.BpeTrainer(vocab_size=len(first) + 120, special_tokens=first)
    tokenizer.train_from_iterator([word for text in words for word in text], trainer)
    state = json.loads(tokenizer.to_str())  # bytes are tokens, but none that a text could name
    state["added_tokens"] = state["added_tokens"][: len(special)]
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def _saved(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer, template: str | None = None, **named: str) -> None:
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)


def _ends(folder: pathlib.Path, *tokens: str) -> None:
    """What the model's own generation_config.json says."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))


def sentencepiece_file(folder: pathlib.Path) -> None:
    """tokenizer.model alone, as the first LLaMA has it."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_writer=made, vocab_size=340, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def llama2_chat(folder: pathlib.Path) -> None:
    """Every text starts with a space; the template's [INST] is no token."""
    space = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = _spaces(["<unk>", "<s>", "</s>"], space)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    _saved(folder, tokenizer, INST, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def unigram_without_begin(folder: pathlib.Path) -> None:
    """SentencePiece's other model, with nothing before a text."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "<eos>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    _saved(folder, tokenizer, eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")


def llama3(folder: pathlib.Path) -> None:
    """Bytes, a begin token that its post-processor adds and its template writes, two ends, nothing for padding."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_level(special)
    begin = (special[0], tokenizer.token_to_id(special[0]))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    _saved(folder, tokenizer, LLAMA3, bos_token=begin[0], eos_token="<|eot_id|>")
    _ends(folder, "<|end_of_text|>", "<|eot_id|>")


def qwen(folder: pathlib.Path) -> None:
    """Bytes, no begin token, two ends, of which one is for padding, too."""
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    _saved(folder, tokenizer, QWEN, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    _ends(folder, "<|im_end|>", "<|endoftext|>")


def gemma(folder: pathlib.Path) -> None:
    """Spaces as ▁ but none before a text; padding is 0, and a token that text models have no embedding for."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = _spaces(special, normalizers.Replace(" ", "▁"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.add_special_tokens([tokenizers.AddedToken("<picture>", special=True, normalized=False)])
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _saved(folder, tokenizer, GEMMA, **named)
    _ends(folder, "<eos>", "<end_of_turn>")


def gpt2(folder: pathlib.Path) -> None:
    """Bytes, one token that begins and ends texts, which the tokenizer does not add."""
    name = "<|endoftext|>"
    _saved(folder, _byte_level([name]), bos_token=name, eos_token=name)


KINDS: dict[str, Callable[[pathlib.Path], None]] = {
    kind.__name__: kind for kind in (sentencepiece_file, llama2_chat, unigram_without_begin, llama3, qwen, gemma, gpt2)
}
