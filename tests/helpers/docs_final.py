"""Stands in for configs/final.py where tests run the commands of the documentation: the same, of a size for tests."""

from configs import base


def get_config(variant: str = "tpu"):
    """`variant`: tpu or reference, which is that of the recorded checkpoint."""
    config = base.get_config()
    config.dtype = "float32"
    config.data.feature_width = 64
    config.data.row = {"positions": 192, "frames": 24, "labels": 48, "clips": 2, "window": 192}
    config.updates, config.checkpoint.every, config.log_every = 2, 2, 1
    config.optimizer.warmup_updates, config.optimizer.decay_updates = 1, 1
    config.encoder.freeze_updates, config.samples.clips = 1, 0
    config.evaluate.rows, config.evaluate.decoding.num_beams, config.evaluate.decoding.max_new_tokens = 2, 2, 4
    if variant == "reference":
        config.updates = 30
    return config
