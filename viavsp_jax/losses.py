"""The loss over label positions, and metrics as sums and counts.

Letters: B rows, L label positions, V vocabulary.
"""

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class Metrics(clu.metrics.Collection):
    """Loss per utterance and accuracy per label token, summed exactly over batches of any filling."""

    loss: clu.metrics.Average
    accuracy: clu.metrics.Average


def label_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, smoothing: float = 0.0
) -> tuple[jax.Array, Metrics]:
    """Mean over utterances of the mean cross-entropy of an utterance's label tokens, in nats.

    Args:
      logits: float32[B, L, V].
      targets: int32[B, L].
      weights: float32[B, L]; 1 / (label tokens of its utterance), 0 for padding. They sum to the utterances.
      smoothing: share of the target's probability that is spread evenly over the vocabulary.

    Returns:
      The loss to minimise, and the metrics, whose loss is without smoothing.
    """
    nll = smoothed = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if smoothing:  # costs a pass over the logits, which are the largest array there is
        smoothed = (1 - smoothing) * nll + smoothing * (jax.nn.logsumexp(logits, -1) - logits.mean(-1))
    utterances = weights.sum()
    loss = (weights * smoothed).sum() / jnp.maximum(utterances, 1)
    is_label = weights > 0
    correct = (logits.argmax(-1) == targets) & is_label
    return loss, Metrics.create_collection(
        loss=clu.metrics.Average(total=(weights * nll).sum(), count=utterances),
        accuracy=clu.metrics.Average(total=correct.sum(), count=is_label.sum()),
    )
