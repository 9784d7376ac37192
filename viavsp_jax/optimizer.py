"""The reference's optimizer: Adam under a tri-stage learning rate."""

import ml_collections
import optax


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


def make_optimizer(config: ml_collections.ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Adam and its schedule from `config.optimizer`."""
    c = config.optimizer
    schedule = tri_stage(c.peak_lr, c.warmup_updates, c.hold_updates, c.decay_updates)
    return optax.adam(schedule, b1=c.b1, b2=c.b2, eps=c.eps), schedule
