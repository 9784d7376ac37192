"""Decodes batches: a beam search over a cache whose capacity follows its live slots."""

import functools
import zlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from viavsp_jax import sharding
from viavsp_jax.decoding import search
from viavsp_jax.models.cache import Cache, compact
from viavsp_jax.runtime import programs

Batch = dict[str, jax.Array]
Tree = dict[str, Any]

# Tokens per beam that a new cache can take.
FIRST_CAPACITY = 16


class Decoder:
    """Decodes batches by a handful of programs, for any number of tokens.

    `prefill` is compiled for every size of prompts, `search` for each of these and each capacity of the cache. The
    cache starts small. When it is full, slots that no beam sees any more are freed (`compact`); only if more than half
    of the slots are live, the capacity grows. So memory and the time of a step follow what the beams remember, not the
    longest text that is allowed.

    A batch is that of the pipeline and `stream` uint32[B], which tells the rows apart when tokens are sampled.
    """

    def __init__(self, mesh: Mesh, structure: nnx.GraphDef, config: search.DecodingConfig, end_ids: tuple[int, ...]):
        self.mesh, self.structure, self.config = mesh, structure, config
        self.rules = search.Search(config, end_ids, functools.partial(sharding.by_rows, mesh))
        # Every token but the last one is run through the model.
        self.capacities = capacities(max(self.config.max_new_tokens - 1, 1))
        jit = functools.partial(programs.jit, self.mesh)
        self.prefill = jit(self._prefill)
        self.search = jit(self._search, donate_argnums=(2, 3))
        self.compact = jit(self._compact, static_argnums=1)
        self.result = jit(search.result, out_shardings=sharding.replicated(self.mesh))

    def __call__(self, trainable: Tree, frozen: Tree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The hypotheses int32[B, M, G], best first, and their scores float32[B, M]; every process gets all of them."""
        state, cache = self.prefill(trainable, frozen, batch)
        while True:
            state, cache, progress = self.search(trainable, frozen, state, cache)
            running, live = jax.device_get(progress)
            if not running:
                return self.result(state)
            cache = self.compact(cache, self.capacity_for(int(live)))

    def capacity_for(self, live: int) -> int:
        """The smallest capacity, in tokens per beam, of which `live` slots are at most half; else the largest."""
        return next(
            (capacity for capacity in self.capacities if 2 * live <= capacity * self.config.num_beams),
            self.capacities[-1],
        )

    def largest(self, trainable: Tree, frozen: Tree, batch: Batch) -> tuple[search.State, Cache]:
        """What `search` gets when beams have nothing in common and no row ends early; all as shapes with shardings."""
        state, cache = jax.eval_shape(self._prefill, trainable, frozen, batch)
        cache = jax.eval_shape(functools.partial(self._compact, capacity=self.capacities[-1]), cache)
        return sharding.with_sharding((state, cache), self._shardings((state, cache)))

    def _prefill(self, trainable, frozen, batch):
        model = nnx.merge(self.structure, trainable, frozen)
        logits, cache = model.prefill(batch, self.capacities[0], self.config.num_beams)
        # Threefry draws alike whatever the batch holds besides; rbg does not.
        key = jax.random.key(self.config.seed, impl="threefry2x32")
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch["stream"])
        return self._placed((self.rules.start(logits, keys), cache))

    def _search(self, trainable, frozen, state, cache):
        """Until the search ends or the cache is full; also tells whether it ended, and the live slots."""
        model = nnx.merge(self.structure, trainable, frozen)

        def extend(tokens, parents, cache):
            logits, cache = model.extend(tokens, parents, cache)
            # As the head's columns lie: gathered are so many logits, not the head.
            columns = sharding.heads(self.mesh, logits.shape[2])
            return jax.lax.with_sharding_constraint(logits, columns), cache

        state, cache = self.rules.run(extend, state, cache, state.step + cache.free)
        return *self._placed((state, cache)), self._placed((search.running(state), cache.live_slots))

    def _compact(self, cache, capacity):
        return self._placed(compact(cache, capacity * self.config.num_beams))

    def _placed(self, tree):
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree))

    def _shardings(self, tree):
        """Keys and values [N, B, G, C, K] by rows and heads, all else by rows, but for numbers."""

        def one(x):
            if x.ndim == 5:
                return sharding.cached(self.mesh, x.shape[2])
            return sharding.rows(self.mesh) if x.ndim else sharding.replicated(self.mesh)

        return jax.tree.map(one, tree)


def capacities(limit: int) -> list[int]:
    """Capacities of a cache in tokens per beam, doubled up to the limit."""
    sizes = [FIRST_CAPACITY]
    while sizes[-1] < limit:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], limit]


def fill_up(batch: dict[str, np.ndarray], records: list[dict]) -> dict[str, np.ndarray]:
    """Empty rows repeat the last record, so as not to end later than all others; adds `stream`, from the ids."""
    rows = np.minimum(np.arange(len(batch["lengths"])), len(records) - 1)
    streams = np.array([zlib.crc32(record["id"].encode()) for record in records], np.uint32)
    return {name: value[rows] for name, value in (batch | {"stream": streams}).items()}
