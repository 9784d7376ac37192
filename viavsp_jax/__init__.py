"""Vietnamese audio-visual speech recognition with an LLM, in JAX."""

__version__ = "0.1.0"
