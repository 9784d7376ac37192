"""The loss over label positions, and metrics as sums and counts.

Letters: B rows, L label positions, V vocabulary.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu.metrics import Average

from viavsp_jax.data.examples import MODALITIES
from viavsp_jax.models.ctc import ctc_loss


@flax.struct.dataclass
class Metrics:
    """Losses per utterance (of the CTC head: per unit of it), accuracy per label token and the norm of an update's
    gradients together.

    As sums and counts, which add up exactly over batches of any filling.
    """

    loss: Average
    accuracy: Average
    loss_av: Average
    loss_audio: Average
    loss_video: Average
    gradient_norm: Average = flax.struct.field(default_factory=Average.empty)
    loss_ctc: Average = flax.struct.field(default_factory=Average.empty)

    def of_update(self, gradient_norm: jax.Array) -> "Metrics":
        """The same with float32[] `gradient_norm`, that before gradients are clipped."""
        return self.replace(gradient_norm=Average(total=gradient_norm, count=jnp.float32(1)))


def summarize(metrics: Sequence[Metrics]) -> dict[str, float]:
    """The means over several batches, without those of nothing; waits for the devices."""
    total = jax.tree.map(lambda *parts: np.sum(parts), *jax.device_get(metrics))
    return {name: float(mean.total / mean.count) for name, mean in vars(total).items() if mean.count}


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
        return Average(total=(weights * nll).sum(), count=weights.sum())

    known = jnp.full(targets.shape, len(MODALITIES)) if modality is None else modality
    return loss, Metrics(
        loss=Average(total=(weights * nll).sum(), count=utterances),
        **{f"loss_{name}": mean(weights * (known == index)) for index, name in enumerate(MODALITIES)},
        accuracy=Average(total=correct.sum(), count=is_label.sum()),
    )


def with_ctc(
    loss: jax.Array, metrics: Metrics, ctc: tuple[jax.Array, jax.Array] | None, units: jax.Array | None, weight: float
) -> tuple[jax.Array, Metrics]:
    """Adds `weight` times the mean over clips of the CTC loss for each unit, in nats.

    Args:
      loss, metrics: of `label_loss`.
      ctc: logits float32[N, U, V] and padding bool[N, U] of the clips of all rows; None without a CTC head.
      units: int32[B, C, U] of the clips, N of them together; clips without any do not count.
    """
    if ctc is None:
        return loss, metrics
    losses, counts = ctc_loss(*ctc, units.reshape(-1, units.shape[-1]))
    mean = Average(total=losses.sum(), count=counts.sum())
    return loss + weight * mean.total / jnp.maximum(mean.count, 1), metrics.replace(loss_ctc=mean)
