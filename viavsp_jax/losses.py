"""The loss over label positions, and metrics as sums and counts.

Letters: B rows, L label positions, V vocabulary.
"""

import functools
from collections.abc import Sequence

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import optax

from viavsp_jax.data.examples import MODALITIES


@flax.struct.dataclass
class Metrics(clu.metrics.Collection):
    """Loss per utterance and accuracy per label token, summed exactly over batches of any filling."""

    loss: clu.metrics.Average
    accuracy: clu.metrics.Average
    loss_av: clu.metrics.Average
    loss_audio: clu.metrics.Average
    loss_video: clu.metrics.Average


def of_update(metrics: Metrics, gradient_norm: jax.Array) -> Metrics:
    """The same with float32[] `gradient_norm`, the norm of all gradients together."""
    parts = {name: getattr(metrics, name) for name in Metrics.__annotations__}
    norm = clu.metrics.Average(total=gradient_norm, count=jnp.float32(1))
    return Metrics.create_collection(**parts, gradient_norm=norm)


def summarize(metrics: Sequence[Metrics]) -> dict[str, float]:
    """The means over several batches, without those of no utterances; waits for the devices."""
    total = functools.reduce(lambda one, other: one.merge(other), jax.device_get(metrics))
    parts = {name: part for name, part in vars(total).items() if isinstance(part, clu.metrics.Average)}
    return {name: float(part.compute()) for name, part in parts.items() if part.count}


def label_loss(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    smoothing: float = 0.0,
    modality: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Mean over utterances of the mean cross-entropy of an utterance's label tokens, in nats.

    Args:
      logits: float32[B, L, V].
      targets: int32[B, L].
      weights: float32[B, L]; 1 / (label tokens of its utterance), 0 for padding. They sum to the utterances.
      smoothing: share of the target's probability that is spread evenly over the vocabulary.

      modality: int32[B, L], index in MODALITIES; without it the losses by modality are of no utterances.

    Returns:
      The loss to minimise, and the metrics, whose losses are without smoothing.
    """
    nll = smoothed = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if smoothing:  # costs a pass over the logits, which are the largest array there is
        smoothed = (1 - smoothing) * nll + smoothing * (jax.nn.logsumexp(logits, -1) - logits.mean(-1))
    utterances = weights.sum()
    loss = (weights * smoothed).sum() / jnp.maximum(utterances, 1)
    is_label = weights > 0
    correct = (logits.argmax(-1) == targets) & is_label

    def mean(weights):
        return clu.metrics.Average(total=(weights * nll).sum(), count=weights.sum())

    known = jnp.full(targets.shape, len(MODALITIES)) if modality is None else modality
    return loss, Metrics.create_collection(
        loss=clu.metrics.Average(total=(weights * nll).sum(), count=utterances),
        **{f"loss_{name}": mean(weights * (known == index)) for index, name in enumerate(MODALITIES)},
        accuracy=clu.metrics.Average(total=correct.sum(), count=is_label.sum()),
    )
