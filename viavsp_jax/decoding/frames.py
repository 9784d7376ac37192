"""What the CTC head makes of the frames of clips, and which units it hears by itself.

Letters: B rows of a decoding batch, one clip each, T frames, V units with the blank.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from viavsp_jax import sharding
from viavsp_jax.data.units import BLANK
from viavsp_jax.runtime import programs

Tree = dict[str, Any]


def jit_log_probs(mesh: Mesh, structure: nnx.GraphDef) -> jax.stages.Wrapped:
    """(trainable, frozen, decoding batch) → log-probabilities float32[B, T, V], on every process."""

    def log_probs(trainable: Tree, frozen: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        logits, _ = nnx.merge(structure, trainable, frozen).ctc_logits(batch)
        return jax.nn.log_softmax(logits).astype(jnp.float32)

    return programs.jit(mesh, log_probs, out_shardings=sharding.replicated(mesh))


def best_units(log_probs: np.ndarray) -> np.ndarray:
    """floating[T, V] → int[…], the units of the likeliest unit of each frame, repeated ones once, without blanks."""
    found = np.argmax(log_probs, -1)
    changed = np.concatenate([[True], found[1:] != found[:-1]])
    return found[changed & (found != BLANK)]
