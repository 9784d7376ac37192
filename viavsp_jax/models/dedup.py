"""Segment means with static shapes: runs of frames become one vector each.

Letters: B rows, T frames, S row positions, E encoder width.
"""

import jax
import jax.numpy as jnp


def segment_mean(features: jax.Array, slots: jax.Array, num_slots: int) -> jax.Array:
    """Averages the frames that share a slot.

    Args:
      features: [B, T, E] encoder frames.
      slots: int32[B, T], the position each frame is averaged into, in any order; `num_slots` for padding.
      num_slots: S, the number of positions.

    Returns:
      [B, S, E] in the features' dtype, summed in float32; positions without frames are zero.
    """

    def one_row(frames, slots):
        # Padding goes to an extra slot that is cut off again. There is some between the clips of a row, so XLA must not
        # be told that slots ascend. All it leaves out then is a sort for TPUs, 0.2 % of the cycles.
        ones = jnp.ones(slots.shape, jnp.float32)
        sums = jax.ops.segment_sum(frames.astype(jnp.float32), slots, num_slots + 1)
        counts = jax.ops.segment_sum(ones, slots, num_slots + 1)
        return (sums / jnp.maximum(counts, 1)[:, None])[:num_slots]

    return jax.vmap(one_row)(features, slots).astype(features.dtype)
