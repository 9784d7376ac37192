"""Vietnamese audio-visual speech recognition with an LLM, in JAX."""

from viavsp_jax import paths  # noqa: F401  mends etils before anything asks it

__version__ = "0.1.0"
