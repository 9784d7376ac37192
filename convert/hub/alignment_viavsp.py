"""Stands for viavsp_jax/decoding/alignment.py, of which exports get a copy under this name."""

from viavsp_jax.decoding.alignment import Alignment

__all__ = ["Alignment"]
