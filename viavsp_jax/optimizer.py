"""The optimizer and its schedule, by default the reference's; and which parts of the model an update changes."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

Name = Literal["adam", "adamw"]
Schedule = Literal["tri_stage", "cosine", "constant"]
Part = Literal["projector", "lora", "encoder", "ctc"]
PARTS: tuple[Part, ...] = get_args(Part)

# Where a part's weights are among the trainable ones.
_WEIGHTS_OF = {"projector": "projector", "lora": "llm", "encoder": "encoder", "ctc": "ctc"}


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """`config.optimizer` with lengths in updates, `config.train.parts`, and when the encoder is trained."""

    name: Name
    weight_decay: float  # of adamw
    clip_norm: float  # 0: gradients are as they are
    schedule: Schedule
    peak_lr: float
    warmup_updates: int
    hold_updates: int
    decay_updates: int
    b1: float
    b2: float
    eps: float
    parts: tuple[Part, ...]  # that learn
    train_encoder: bool  # the model has one that may
    freeze_updates: int  # updates before it does


def tri_stage(
    peak: float, warmup: int, hold: int, decay: int, initial_scale: float = 0.01, final_scale: float = 0.05
) -> optax.Schedule:
    """Linear from `initial_scale`·peak to peak, level, exponential to `final_scale`·peak; lengths in updates.

    Update k (counted from 0) uses the value at k, as fairseq's schedule of the same name does.
    """
    end = optax.exponential_decay(peak, max(decay, 1), final_scale, end_value=final_scale * peak)
    return _risen(peak, warmup, hold, end, initial_scale)


def make_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """tri_stage; or the same rise, and then cosine: half a cosine to 0; constant: the peak for good."""
    c = settings
    if c.schedule == "tri_stage":
        return tri_stage(c.peak_lr, c.warmup_updates, c.hold_updates, c.decay_updates)
    cosine = optax.cosine_decay_schedule(c.peak_lr, max(c.decay_updates, 1))
    end = cosine if c.schedule == "cosine" else optax.constant_schedule(c.peak_lr)
    return _risen(c.peak_lr, c.warmup_updates, c.hold_updates, end)


def _risen(peak: float, warmup: int, hold: int, end: optax.Schedule, initial_scale: float = 0.01) -> optax.Schedule:
    stages = [optax.linear_schedule(initial_scale * peak, peak, warmup), optax.constant_schedule(peak), end]
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
    """Adam or AdamW (arXiv:1711.05101) and its schedule.

    An encoder has an Adam of its own, whose count begins with its first update: as in fairseq, whose Adam starts with a
    weight's first gradient. Its learning rate is that of all others at `step`, an argument of every update, as is
    `train_encoder`: whether the encoder is trained.

    The state has the same form with any settings, so that a run may go on with others.
    """
    c, schedule = settings, make_schedule(settings)

    def adam(first: int = 0) -> optax.GradientTransformation:
        scaled = scale_by_adam(c.b1, c.b2, c.eps)
        if c.name == "adamw":
            scaled = _with_decay(scaled, c.weight_decay)
        return optax.chain(scaled, _scale_by_rate(schedule, first))

    whole = optax.with_extra_args_support(adam())
    if c.train_encoder:
        late = when_trained(adam(c.freeze_updates))
        whole = optax.partition({"encoder": late, "others": adam()}, _labels)
    return (_with_clipping(whole, c.clip_norm) if c.clip_norm else whole), schedule


def _scale_by_rate(rate: optax.Schedule, first: int) -> optax.GradientTransformationExtraArgs:
    """As optax.scale_by_learning_rate; at the `step` that it is told, or else by its own count from `first` on."""

    def update(updates, state, weights=None, *, step=None, **more):
        del weights, more
        factor = -rate(state.count + first if step is None else step)
        return jax.tree.map(lambda x: factor * x, updates), optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformationExtraArgs(lambda _: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update)


def _with_decay(scaled: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Adds the decay to scaled gradients, and nothing to their state."""

    def update(gradients, state, weights):
        updates, state = scaled.update(gradients, state, weights)
        return jax.tree.map(lambda update, weight: update + decay * weight, updates, weights), state

    return optax.GradientTransformation(scaled.init, update)


def _with_clipping(inner: optax.GradientTransformationExtraArgs, limit: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients whose norm together is above the limit down to it; adds nothing to the state."""

    def update(gradients, state, weights=None, **more):
        scale = jnp.minimum(1, limit / optax.tree.norm(gradients))
        return inner.update(jax.tree.map(lambda x: x * scale, gradients), state, weights, **more)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def when_trained(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` in updates that train the encoder; in others neither weights nor moments change."""

    def update(gradients, state, params=None, *, train_encoder: bool, step=None):
        if train_encoder:
            return inner.update(gradients, state, params, step=step)
        return jax.tree.map(jnp.zeros_like, gradients), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _labels(trainable: Any) -> dict[str, str]:
    return {name: "encoder" if name == "encoder" else "others" for name in trainable}


def only(parts: tuple[Part, ...], tree: dict[str, Any]) -> dict[str, Any]:
    """A tree over the trainable weights with zeros for those of other parts; what would fill them is not computed."""
    kept = {_WEIGHTS_OF[part] for part in parts}
    return {name: x if name in kept else jax.tree.map(jnp.zeros_like, x) for name, x in tree.items()}


def learning(settings: OptimizerSettings, update: int) -> tuple[Part, ...]:
    """The parts that update `update`, counted from 1, changes; the reference's `freeze_finetune_updates`."""
    encoder = settings.train_encoder and update > settings.freeze_updates
    return tuple(part for part in settings.parts if encoder or part != "encoder")
