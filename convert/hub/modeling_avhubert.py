"""Stands for viavsp_jax/prepare/features/modeling_avhubert.py, of which exports get a copy under this name."""

from viavsp_jax.prepare.features.modeling_avhubert import AVHubert

__all__ = ["AVHubert"]
