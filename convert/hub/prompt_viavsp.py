"""Stands for viavsp_jax/data/prompt_ids.py, of which exports get a copy under this name."""

from viavsp_jax.data.prompt_ids import Wording, after_speech, before_speech, until_end

__all__ = ["Wording", "after_speech", "before_speech", "until_end"]
