"""The reference's optimizer: Adam under a tri-stage learning rate; and from which update on the encoder is trained."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Adam, its schedule, and from which update on the encoder is trained: `config.optimizer` and `config.encoder`."""

    peak_lr: float
    warmup_updates: int
    hold_updates: int
    decay_updates: int
    b1: float
    b2: float
    eps: float
    train_encoder: bool
    freeze_updates: int  # updates before the encoder is trained, where it is


def tri_stage(
    peak: float, warmup: int, hold: int, decay: int, initial_scale: float = 0.01, final_scale: float = 0.05
) -> optax.Schedule:
    """Linear from `initial_scale`·peak to peak, level, exponential to `final_scale`·peak; lengths in updates.

    Update k (counted from 0) uses the value at k, as fairseq's schedule of the same name does.
    """
    stages = [
        optax.linear_schedule(initial_scale * peak, peak, warmup),
        optax.constant_schedule(peak),
        optax.exponential_decay(peak, max(decay, 1), final_scale, end_value=final_scale * peak),
    ]
    return optax.join_schedules(stages, [warmup, warmup + hold])


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980) in the form fairseq computes it: m·√(1 − b2ᵗ) / (1 − b1ᵗ) / (√v + eps).

    optax.scale_by_adam adds eps after v's bias correction, which in the first updates makes it up to
    1 / √(1 − b2) times as strong. The state is optax's.
    """

    def update(gradients, state, params=None):
        del params
        count = state.count + 1
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, b2, 2)
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)


def make_optimizer(settings: OptimizerSettings) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """Adam and its schedule.

    An encoder that is trained has an Adam of its own, whose count begins with its first update: as in fairseq, whose
    Adam starts with a weight's first gradient. Its learning rate is that of all others. Every update is told by
    `train_encoder` whether the encoder is trained.
    """
    c = settings
    schedule = tri_stage(c.peak_lr, c.warmup_updates, c.hold_updates, c.decay_updates)

    def adam(learning_rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(scale_by_adam(c.b1, c.b2, c.eps), optax.scale_by_learning_rate(learning_rate))

    if not c.train_encoder:
        return optax.with_extra_args_support(adam(schedule)), schedule
    late = when_trained(adam(lambda count: schedule(count + c.freeze_updates)))
    return optax.partition({"encoder": late, "others": adam(schedule)}, _parts), schedule


def when_trained(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` in updates that train the encoder; in others neither weights nor moments change."""

    def update(gradients, state, params=None, *, train_encoder: bool):
        if train_encoder:
            return inner.update(gradients, state, params)
        return jax.tree.map(jnp.zeros_like, gradients), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _parts(trainable: Any) -> dict[str, str]:
    return {name: "encoder" if name == "encoder" else "others" for name in trainable}


def trains_encoder(settings: OptimizerSettings, update: int) -> bool:
    """Whether update `update`, counted from 1, changes the encoder; the reference's `freeze_finetune_updates`."""
    return settings.train_encoder and update > settings.freeze_updates
