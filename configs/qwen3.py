"""Draft."""

import ml_collections

from configs import final

CLIPS_PER_UPDATE = 190


def get_config() -> ml_collections.ConfigDict:
    config = final.get_config()
    config.llm.end_token = "<|im_end|>"
    config.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")
    config.lora.dropout = 0.0
    config.data.row = {"positions": 2048, "frames": 1824, "labels": 640, "clips": 24, "window": 192}
    config.updates = final.CLIPS // CLIPS_PER_UPDATE
    config.optimizer.peak_lr = 5e-4
    config.optimizer.warmup_updates = config.updates // 3
    config.optimizer.decay_updates = config.updates - config.updates // 3
    config.encoder.freeze_updates = config.updates // 30
    return config
