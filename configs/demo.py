"""The demo: a small model on synthesized speech, with all the machinery of the real one.

    scripts/demo.sh

makes the corpus, the shards and the language model it needs under runs/demo, trains this config there in a few
minutes on two CPU cores, and prints word error rates. Audio+video in quiet ends below 2 % WER.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """base.py with the sizes of the demo; float32, since CPUs are slow at bfloat16."""
    config = base.get_config()
    config.dtype = "float32"
    config.updates = 400
    config.log_every = 20
    config.llm.path = "runs/demo/llm"
    config.data.path = "runs/demo/shards"
    # Clips as they are cut, and the same with pauses at their ends, as recordings have them.
    config.data.train = (
        *("av_clean", "audio_clean", "video_clean"),
        *("av_wild", "audio_wild", "video_wild"),
    )
    config.data.feature_width = 128
    config.data.rows = 8
    config.data.row = {"positions": 256, "frames": 256, "labels": 128, "clips": 8, "window": 256}
    config.ctc.weight, config.ctc.units = 0.3, 256
    config.optimizer.peak_lr = 5e-3
    config.optimizer.warmup_updates, config.optimizer.decay_updates = 0.1, 0.9
    config.checkpoint.every = 100
    config.evaluate.names = ("av_clean", "audio_clean", "video_clean", "audio_babble_0db", "av_babble_0db")
    config.evaluate.rows = 16
    config.evaluate.decoding.max_new_tokens = 48
    config.evaluate.decoding.num_beams = 5
    return config
