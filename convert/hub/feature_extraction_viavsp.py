"""Stands for viavsp_jax/data/features.py, of which exports get a copy under this name."""

from viavsp_jax.data.features import (
    FRAME_RATE,
    FRAME_SIZE,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    audio_features,
    video_input,
)

__all__ = ["FRAME_RATE", "FRAME_SIZE", "SAMPLES_PER_FRAME", "SAMPLE_RATE", "audio_features", "video_input"]
