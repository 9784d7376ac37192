"""A search from start to end in one go, where decoding.decoder pauses it to change the cache."""

from typing import Any

import jax

from viavsp_jax.decoding.search import DecodingConfig, Extend, Search, result


def decode(
    extend: Extend,
    logits: jax.Array,
    cache: Any,
    config: DecodingConfig,
    end_id: int | tuple[int, ...],
    keys: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Continues every row, in one loop that can be jitted: tokens and scores as `result` has them.

    Args:
      extend: runs the model one token further. It is called for ended rows too; what it says of them is ignored.
      logits: float32[B, V] after the prompt.
      cache: what `extend` needs to know of the past, any pytree of arrays.
      config: how to search.
      end_id: ends a hypothesis and fills it up; of several each one ends it, the first one fills it up.
      keys: PRNG keys [B], one a row, to sample with.
    """
    search = Search(config, (end_id,) if isinstance(end_id, int) else end_id)
    return result(search.run(extend, search.start(logits, keys), cache, config.max_new_tokens)[0])
