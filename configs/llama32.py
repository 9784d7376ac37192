"""Llama-3.2-3B in place of VinaLLaMA-2.7B on a TPU v5e:2x4; what is not said here is as in configs/final.py.

    python -m convert.from_hf path/to/Llama-3.2-3B-Instruct --output data/llm --dtype bfloat16
    python -m viavsp_jax.main --config=configs/llama32.py --workdir=gs://BUCKET/llama32 \
        --config.llm.path=gs://BUCKET/llm --config.data.path=gs://BUCKET/shards

Whether it fits can be known before anything is downloaded, from the model's sizes alone:

    python -m viavsp_jax.main --config=configs/llama32.py --mode=compile --topology=v5e:2x4 \
        --config.llm.path=configs/shapes/llama-3.2-3b

                                       train     decode
    fits                                 yes        yes
    HBM used                            66.2 %     57.5 %
      arguments                       6.30 GiB   7.21 GiB
      temporaries                     4.07 GiB   0.55 GiB
      output                          0.00 GiB   1.31 GiB
      code                            0.05 GiB   0.00 GiB
    FLOPs a step                      203.09 T    67.82 T
    sent a step by each device        54.93 MB    0.00 MB
    step at peak                     128.86 ms   43.04 ms
    step of reading weights alone     15.69 ms  221.04 ms
    step by the compiler's estimates 208.15 ms  424.56 ms
    whole run by these                  0.60 h     0.09 h

(jax 0.10.2, libtpu 0.0.42.1, 8 chips of 15.75 GiB.) Nobody has trained it yet.

Mesh and remat: the weights take 6.0 GiB of a chip; the embedding, 0.7 GiB of them, is the head too and is there once.
So every chip holds all of them and one row, and only gradients of adapters and projector are sent.

Rows: this tokenizer makes 1.13 to 1.21 tokens of a Vietnamese syllable, measured on two texts, and 13 of the
instruction. Rows are laid out for 1.25 and 15: of clips of 10 to 26 syllables and 76 frames a row holds 29, an update
some 230. The table packs a token a syllable.

Adapters: Vietnamese is not among the eight languages that Llama 3.2 officially supports, so there is more to learn than
to listen. They are on all seven projections: those on attention alone learn less even with as many weights, as "LoRA
Without Regret" (Schulman et al., 2025) found.

Learning rate: the same study has 5e-4 · (2000 / width)^0.78 = 3.6e-4 as the best for this family at alpha = 32. It also
found that adapters gain less than other weights from large batches, so the rate is not raised for 29 times the
reference's batch, as configs/final.py does.

End token: the tokenizer's own, <|eot_id|> of the model that was tuned to chats, <|end_of_text|> of the base model,
which has hardly seen the other one.
"""

import ml_collections

from configs import final

CLIPS_PER_UPDATE = 232


def get_config() -> ml_collections.ConfigDict:
    """configs/final.py with what depends on the language model."""
    config = final.get_config()
    config.llm.end_token = ""
    config.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")
    # 30 clips of 76 frames.
    config.data.row = {"positions": 2048, "frames": 2280, "labels": 736, "clips": 30, "window": 192}
    config.updates = final.CLIPS // CLIPS_PER_UPDATE
    config.optimizer.peak_lr = 3.6e-4
    return config
