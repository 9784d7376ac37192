"""The reference's final recipe (v2.0), scaled to a TPU slice.

    python -m viavsp_jax.main --config=configs/final.py --workdir=gs://BUCKET/final \
        --config.llm.path=gs://BUCKET/vinallama --config.data.path=gs://BUCKET/shards

The reference makes 300,000 updates of 8 clips, 2.4 M clips in all. The default keeps the number of clips seen and the
shape of the schedule (a third warm-up, two thirds decay), in fewer and larger updates: 8 rows of 2,048 positions hold
about 31 VASR clips each, 250 an update, and give every chip of an 8-chip slice one row. Fewer chips work on theirs one
after the other; on more, up to 64, rows get shorter and as many more (config.data.rows is -1), within 5 % of the clips.
Beyond that rows of one or two clips are mostly padding. 31 times the clips bring 5.6 times less gradient noise, which
carries a higher rate; the peak is doubled, well short of the square-root rule, since nobody has measured this model at
that batch yet.

    --config=configs/final.py:reference

keeps batch 8 × 300,000 updates and the reference's rate, for comparison; it leaves most of a slice idle.
Either of them trains adapters and projector on cached features of the frozen encoder. The reference published 12.03 %
WER and 7.2 % CER for its own run on the gated VASR test set, where the encoder was trained too from update 10,000 on:

    --config.encoder.train=true --config.encoder.path=gs://BUCKET/avhubert

does that from shards of media (python -m viavsp_jax.prepare shards --kind=media), for 1.4 times the operations.
"""

import ml_collections

from configs import base

CLIPS = 2_400_000
CLIPS_PER_UPDATE = 250


def get_config(variant: str = "tpu") -> ml_collections.ConfigDict:
    """`variant`: tpu or reference."""
    config = base.get_config()
    if variant == "reference":
        config.updates = 300_000
    elif variant == "tpu":
        config.data.rows, config.device_rows = -1, 1
        # 32 clips of 76 frames.
        config.data.row = {"positions": 2048, "frames": 2432, "labels": 656, "clips": 32, "window": 192}
        config.updates = CLIPS // CLIPS_PER_UPDATE
        config.optimizer.peak_lr = 1e-3
        config.evaluate.rows = -1
        config.checkpoint.every = 500
    else:
        raise ValueError(f"variant {variant!r} of configs/final.py: expected tpu or reference")
    # The reference's shares.
    config.optimizer.warmup_updates, config.optimizer.decay_updates = 1 / 3, 2 / 3
    config.encoder.freeze_updates = 1 / 30
    return config
