"""What the CTC head makes of the frames of clips, and what it is used for: the best text, its words, their confidence.

Letters: B rows of a decoding batch, one clip each, T frames, V units with the blank, M hypotheses, G tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from viavsp_jax import sharding
from viavsp_jax.data.units import BLANK, Units
from viavsp_jax.decoding import search
from viavsp_jax.decoding.calibration import Calibration
from viavsp_jax.decoding.nbest import NBest
from viavsp_jax.runtime import programs

Batch = dict[str, jax.Array]
Tree = dict[str, Any]


def jit_log_probs(mesh: Mesh, structure: nnx.GraphDef) -> jax.stages.Wrapped:
    """(trainable, frozen, decoding batch) → log-probabilities float32[B, T, V], on every process."""

    def log_probs(trainable: Tree, frozen: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        logits, _ = nnx.merge(structure, trainable, frozen).ctc_logits(batch)
        return jax.nn.log_softmax(logits).astype(jnp.float32)

    return programs.jit(mesh, log_probs, out_shardings=sharding.replicated(mesh))


@dataclasses.dataclass(frozen=True)
class Hearing:
    """The CTC head of a checkpoint, ready to be used on decoding batches."""

    log_probs: Callable[[Batch], jax.Array]  # batch → float32[B, T, V]
    units: Units
    calibration: Calibration

    def __call__(self, batch: Batch, records: Sequence[dict]) -> list[np.ndarray]:
        """float32[T, V] of each record, the first ones of the batch, without padding."""
        found, lengths = jax.device_get(self.log_probs(batch)), [int(one["cluster_counts"].sum()) for one in records]
        return [one[:length] for one, length in zip(found, lengths, strict=False)]

    def ranked(self, nbest: NBest, heard: np.ndarray) -> NBest:
        """The hypotheses of one record in the order of the calibration."""
        weight = self.calibration.ctc_weight
        return nbest.rescored(nbest.likelihoods(heard, self.units), weight)[0] if weight else nbest


def nbest_of(
    texts: Sequence[str], tokens: np.ndarray, scores: np.ndarray, config: search.DecodingConfig, end_ids: Sequence[int]
) -> NBest:
    """What a search by `config` found for one row: int[M, G] with their texts, and float[M]."""
    lengths = np.minimum((np.cumsum(np.isin(tokens, end_ids), 1) == 0).sum(1) + 1, tokens.shape[1])
    penalty = config.length_penalty if len(tokens) > 1 else 0.0
    return NBest.of(texts, scores, lengths.astype(np.float64) ** penalty)


def best_units(log_probs: np.ndarray) -> np.ndarray:
    """floating[T, V] → int[…], the units of the likeliest unit of each frame, repeated ones once, without blanks."""
    found = np.argmax(log_probs, -1)
    changed = np.concatenate([[True], found[1:] != found[:-1]])
    return found[changed & (found != BLANK)]
