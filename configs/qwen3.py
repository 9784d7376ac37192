"""Qwen3-4B in place of VinaLLaMA-2.7B on a TPU v5e:2x4; what is not said here is as in configs/final.py.

    python -m convert.from_hf path/to/Qwen3-4B --output data/llm --dtype bfloat16
    python -m viavsp_jax.main --config=configs/qwen3.py --workdir=gs://BUCKET/qwen3 \
        --config.llm.path=gs://BUCKET/llm --config.data.path=gs://BUCKET/shards

Whether it fits can be known before anything is downloaded, from the model's sizes alone:

    python -m viavsp_jax.main --config=configs/qwen3.py --mode=compile --topology=v5e:2x4 \
        --config.llm.path=configs/shapes/qwen3-4b

                                       train     decode
    fits                                 yes        yes
    HBM used                          88.4 %     72.7 %
      arguments                     7.90 GiB   9.07 GiB
      temporaries                   5.99 GiB   0.70 GiB
      output                        0.00 GiB   1.68 GiB
      code                          0.04 GiB   0.00 GiB
    FLOPs a step                    264.15 T    86.45 T
    sent a step by each device      71.31 MB    0.00 MB
    step at peak                   167.61 ms   54.85 ms
    step of reading weights alone   19.65 ms  277.11 ms
    step by the compiler's estimates  325.98 ms  550.62 ms
    whole run by these                0.94 h     0.12 h

(jax 0.10.2, libtpu 0.0.42.1, 8 chips of 15.75 GiB.) Nobody has trained it yet.

Mesh and remat: the weights take 7.5 GiB of a chip; the embedding, 0.7 GiB of them, is the head too and is there once.
So every chip holds all of them and one row, and only gradients of adapters and projector are sent. What the backward
pass keeps is most of the temporaries, about 135 MiB a layer; logits at 720 label positions are 0.41 GiB in float32.
With the encoder trained, as configs/final.py describes, --config.remat=layers makes room for it: 75.9 % in training and
80.4 % in decoding, 277 ms an update.

Rows: this tokenizer makes 1.16 to 1.28 tokens of a Vietnamese syllable, measured on two texts, and 14 of the
instruction. Rows are laid out for 1.25 and 15: of clips of 10 to 26 syllables and 76 frames a row holds 29, an update
some 230. The table packs a token a syllable.

Adapters: on all seven projections, as those on attention alone learn less even with as many weights ("LoRA Without
Regret", Schulman et al., 2025). Without dropout, whose masks in front of seven projections take 1.3 GiB: with the
reference's 5 % training would take 97.8 % of the memory. 2.4 M clips are about two epochs of VASR, few to overfit in.

Learning rate: the reference's. The same study has 4.9e-4 as the best for this width and family at alpha = 32. It also
found that adapters gain less than other weights from large batches, so the rate is not raised for 29 times the
reference's batch, as configs/final.py does.

End token: the tokenizer's own, <|im_end|> of the model that was tuned to chats, <|endoftext|> of the base model, which
has hardly seen the other one.
"""

import ml_collections

from configs import final

CLIPS_PER_UPDATE = 230


def get_config() -> ml_collections.ConfigDict:
    """configs/final.py with what depends on the language model."""
    config = final.get_config()
    config.llm.end_token = ""
    config.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")
    config.lora.dropout = 0.0
    # 30 clips of 76 frames.
    config.data.row = {"positions": 2048, "frames": 2280, "labels": 720, "clips": 30, "window": 192}
    config.updates = final.CLIPS // CLIPS_PER_UPDATE
    config.optimizer.peak_lr = 5e-4
    return config
