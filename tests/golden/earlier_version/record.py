"""Records two small runs, one on features and one that trains its encoder, with the version that is checked out.

    PYTHONPATH=.:tests JAX_PLATFORMS=cpu python tests/golden/earlier_version/record.py FOLDER

All paths in them are relative to FOLDER. See README.md for what is kept of it.
"""

import os
import pathlib
import shutil
import sys

import numpy as np
import tokenizers
import torch
import transformers
from small_media import make_clip
from small_run import make_example, small_config

from convert import decode_hf, from_hf, to_hf
from viavsp_jax import evaluate, train
from viavsp_jax.data import records
from viavsp_jax.data.examples import FEATURES, MEDIA
from viavsp_jax.data.prompt import instruction_text
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.avhubert_torch import AVHubert, save_encoder

SENTENCES = ["xin chào", "trời đẹp", "một hai ba", "các bạn"]
SPLITS = {"train": 3, "valid": 1, "test": 2}
WIDTH = 8


def write_llama(folder: str) -> None:
    """A random LLaMA of one layer, as transformers saves it, with a tokenizer."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.pre_tokenizer, model.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<s>", "</s>"])
    model.train_from_iterator([*SENTENCES, instruction_text("vi", "vi")], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=6, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def write_encoder(folder: str) -> None:
    """A random encoder of one layer."""
    torch.manual_seed(0)
    sizes = {"frontend_channels": 2, "resnet_channels": (2, 2, 3, 3), "conv_pos": 4, "conv_pos_groups": 4}
    config = AVHubertConfig(embed_dim=WIDTH, num_layers=1, num_heads=2, ffn_dim=12, **sizes)
    save_encoder(AVHubert(config).eval(), folder)


def write_shards() -> None:
    """The same sentences as features and as media."""
    rng = np.random.default_rng(0)
    for folder, kind in (("shards/av_clean", FEATURES), ("shards/media_clean", MEDIA)):
        for split, count in SPLITS.items():
            named = [(f"{split}-{i}", SENTENCES[i % len(SENTENCES)]) for i in range(count)]
            if kind is FEATURES:
                examples = [make_example(rng, name, text, WIDTH) for name, text in named]
            else:
                examples = [make_clip(rng, name, text, pathlib.Path()) for name, text in named]
                examples = [clip | {"audio": clip["audio"] & ~1023} for clip in examples]  # small when compressed
            records.write_shard(records.shard_path(folder, split, 0, 1, kind), examples, kind)
        records.write_metadata(folder, WIDTH if kind is FEATURES else None, SPLITS, kind)
    pathlib.Path("clip.mp4").unlink()


def record(name: str, train_encoder: bool) -> None:
    """The work folder, its evaluation, its export and what PyTorch makes of that."""
    config = small_config("llm", "shards")
    config.data.feature_width, config.lora.rank = WIDTH, 2
    config.data.row = {"positions": 160, "frames": 96, "labels": 32, "clips": 2, "window": 96}
    config.updates = config.checkpoint.every = 3
    config.optimizer.peak_lr = 0.05
    config.evaluate.decoding.max_new_tokens, config.evaluate.decoding.num_beams = 8, 2
    if train_encoder:
        config.encoder.train, config.encoder.path, config.encoder.freeze_updates = True, "encoder", 0
        config.encoder.batch_norm = "batch"
    train.train(config, name)
    evaluate.evaluate(config, name)
    to_hf.export(name, f"{name}-export", llm="llm")
    sys.argv = ["decode_hf", f"--model={name}-export", "--llm=raw", f"--output={name}-export/hypotheses.tsv"]
    sys.argv += [f"--data=shards/{'media_clean' if train_encoder else 'av_clean'}"]
    decode_hf.main()


def main() -> None:
    os.makedirs(sys.argv[1])
    os.chdir(sys.argv[1])
    write_llama("raw")
    from_hf.convert("raw", "llm", dtype="float32")
    write_encoder("encoder")
    write_shards()
    record("features", train_encoder=False)
    record("encoder-trained", train_encoder=True)
    for run in ("features", "encoder-trained"):
        for code in pathlib.Path(f"{run}-export").glob("*.py"):
            code.unlink()
        pathlib.Path(run, "report.html").unlink()
        shutil.rmtree(pathlib.Path(run, "tensorboard"))


if __name__ == "__main__":
    main()
