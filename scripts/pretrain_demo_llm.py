"""Makes the demo's language model: a 1 M-parameter LLaMA with its own tokenizer, in Hugging Face format.

    python scripts/pretrain_demo_llm.py --output viavsp_jax/demo_models/llama

It learns what a large language model brings along: the language (sentences of the demo's grammar, from the split kept
for pre-training) and spelling (a sentence written letter by letter, with letters repeated, confused and lost, is
followed by the sentence). It never sees speech: the adapters and the projector have that to learn.
The shipped weights took 42 minutes on one of two busy CPU cores. With `--family qwen3` it is a Qwen3 of that size with
a byte-level tokenizer, which has no begin token, to try the demo with another family.
"""

import argparse
import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from viavsp_jax.data.prompt import LANGUAGES, Prompt, instruction_text
from viavsp_jax.prepare.demo.sentences import sample_sentences
from viavsp_jax.runtime.errors import reported_to_user

TONES = "\u0300\u0301\u0303\u0309\u0323"
# Letters that look alike on the lips, or sound alike in noise.
CONFUSED = ("bmp", "đtnlsx", "cgkh", "vf", "ưuôoơ", "iêey", "aăâ", "dgr")
IGNORED = -100


def texts_to_learn(sentences: list[str]) -> list[str]:
    """Sentences, and the instructions so often that they become few tokens."""
    other = [instruction_text(a, b) for a in LANGUAGES for b in LANGUAGES]
    return [*sentences, *[instruction_text("vi", "vi")] * len(sentences), *other]


def qwen_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of bytes, laid out as Qwen's: pieces, then specials, none of which begins a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts_to_learn(sentences), trainer)
    specials = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


def llama_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding with byte fallback and a word-start mark, laid out as LLaMA's: specials, bytes, pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    tokenizer.train_from_iterator(texts_to_learn(sentences), trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    tokenizer.model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in learnt["merges"]],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    )  # fmt: skip
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse(),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def spell(sentence: str, rng: random.Random) -> list[str]:
    """The sentence's letters as a listener might get them: repeated, some confused or lost, maybe without tones."""
    toneless = rng.random() < 0.3
    noise = rng.choice((0.0, 0.05, 0.15, 0.3))
    letters = []
    for letter in sentence.replace(" ", ""):
        base = unicodedata.normalize("NFD", letter)
        plain = unicodedata.normalize("NFC", "".join(mark for mark in base if mark not in TONES))
        if toneless or rng.random() < noise:
            letter = plain
        if rng.random() < noise:
            letter = rng.choice(next((group for group in CONFUSED if plain in group), plain))
        if rng.random() > noise / 3:
            letters += [letter] * rng.choice((1, 1, 1, 2))
    return letters


def letter_ids(tokenizer: PreTrainedTokenizerFast, letter: str) -> list[int]:
    """A letter amid a word."""
    if tokenizer.bos_token is None:  # byte-level: nothing marks where words start
        return tokenizer(letter, add_special_tokens=False)["input_ids"]
    return [tokenizer.convert_tokens_to_ids(letter)]


def documents(prompt: Prompt, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, targets) without end: spelled sentences with the instruction before them, and plain sentences."""
    rng = random.Random(seed)
    instruction = prompt.instruction("vi", "vi")
    sentences = sample_sentences(seed, 60_000, "pretrain")
    while True:
        sentence = rng.choice(sentences)
        label = prompt.label(sentence)
        if rng.random() < 0.15:
            yield label, label
            continue
        letters = [one for letter in spell(sentence, rng) for one in letter_ids(tokenizer, letter)]
        yield instruction + letters + label, [IGNORED] * len(instruction + letters) + label


def batches(documents: Iterator[tuple[list[int], list[int]]], size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches; padding is after the text, so that causal attention needs no mask."""
    while True:
        group = [next(documents) for _ in range(size)]
        length = max(len(ids) for ids, _ in group)
        yield {
            "input_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in group]),
            "labels": torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in group]),
        }


@reported_to_user()
def main() -> None:
    """Trains and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the Hugging Face files")
    parser.add_argument("--family", choices=("llama", "qwen3"), default="llama", help="default: llama")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    sentences = sample_sentences(args.seed, 60_000, "pretrain")
    tokenizer = (llama_tokenizer if args.family == "llama" else qwen_tokenizer)(sentences)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    if args.family == "llama":
        config = LlamaConfig(**sizes, tie_word_embeddings=False)
    else:
        config = Qwen3Config(**sizes, tie_word_embeddings=True, head_dim=48, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=args.steps, pct_start=0.1)
    stream = batches(documents(Prompt(tokenizer, tokenizer.eos_token), tokenizer, args.seed), args.batch_size)
    with tqdm(range(args.steps), unit="step") as bar:
        for step in bar:
            loss = model(**next(stream)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
