"""Stands for viavsp_jax/data/compression.py, of which exports get a copy under this name."""

from viavsp_jax.data.compression import CLUSTERS, Compression

__all__ = ["CLUSTERS", "Compression"]
