"""Rotary position embeddings (arXiv:2104.09864), and the ways in which models stretch them over longer texts.

The frequencies are those of transformers' functions for the same `rope_type`.

Letters: B rows, S positions, H heads, K head width.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies differ from powers of theta, in the words of `rope_parameters` in a Hugging Face config.

    linear divides them all by `factor`. llama3 does so where a wave takes more than original_length / slow positions,
    leaves those below original_length / fast alone, and blends between them. yarn (arXiv:2309.00071) blends
    between the dimensions whose waves go around `fast` and `slow` times in the original length.
    """

    kind: RopeKind = "default"
    factor: float = 1.0
    original_length: int = 0  # positions of the texts before stretching
    slow: float = 1.0  # llama3's low_freq_factor, yarn's beta_slow
    fast: float = 32.0  # llama3's high_freq_factor, yarn's beta_fast
    truncate: bool = True  # yarn: whether the blend begins and ends at whole dimensions
    amplitude: float = 1.0  # yarn: of cosines and sines

    def frequencies(self, theta: float, width: int) -> np.ndarray:
        """Angle by which each pair of dimensions is turned from one position to the next: float32[K / 2]."""
        # By numpy, in float32 as PyTorch has them: positions multiply what a device's own powers would err.
        waves = np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
        plain, factor = 1 / waves, np.float32(self.factor)
        if self.kind == "linear":
            return plain / factor
        if self.kind == "llama3":
            turns = np.float32(self.original_length) / (np.float32(2 * math.pi) / plain)  # in the original length
            share = np.clip((turns - np.float32(self.slow)) / np.float32(self.fast - self.slow), 0, 1)
            return (1 - share) * (plain / factor) + share * plain
        if self.kind == "yarn":
            share = self._ramp(theta, width)
            return share / (factor * waves) + (1 - share) * plain
        return plain

    def table(self, positions: jax.Array, theta: float, width: int, dtype: DTypeLike) -> jax.Array:
        """Cosines and signed sines that turn heads at int32[B, S] positions: [B, S, 2·K]. The angles are float32."""
        angles = positions[:, :, None].astype(jnp.float32) * self.frequencies(theta, width).reshape(1, 1, -1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        if self.amplitude != 1:
            cos, sin = cos * self.amplitude, sin * self.amplitude
        return jnp.concatenate([cos, cos, -sin, sin], -1).astype(dtype)

    def _ramp(self, theta: float, width: int) -> np.ndarray:
        """From 0, where waves are short, to 1, where they are stretched: float32[K / 2]."""

        def dimension(turns: float) -> float:
            """Whose wave goes around so many times in the original length."""
            return width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first, last = dimension(self.fast), dimension(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        steps = np.arange(width // 2, dtype=np.float32) - np.float32(first)
        return np.clip(steps / np.float32(last - first or 0.001), 0, 1)


def rotate(x: jax.Array, table: jax.Array) -> jax.Array:
    """Turns pairs of dimensions, in LLaMA's half-split order: [B, S, H, K] and a table → [B, S, H, K]."""
    cos, sin = jnp.split(table[:, :, None].astype(x.dtype), 2, -1)
    first, second = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([second, first], -1) * sin
