"""Stands for viavsp_jax/decoding/nbest.py, of which exports get a copy under this name."""

from viavsp_jax.decoding.nbest import Confidence, NBest, heard_words, weight_of

__all__ = ["Confidence", "NBest", "heard_words", "weight_of"]
