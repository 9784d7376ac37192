"""Whether a checkpoint is whole, before an older one is given up for it, and whether it is read as it was saved.

A checkpoint's item `sums` is its manifest: a sum for each other item, arrays or JSON.
"""

import collections
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

from viavsp_jax.runtime.paths import key_value_store

_ABOUT_ALL, _ABOUT_ONE = "_METADATA", ".zarray"
_MAY_BE = ("_sharding", "array_metadatas/*")  # without them the arrays can be read, not with half of them
_AT_ONCE = 32  # values that are read side by side and held in memory

ARRAYS = ("trainable", "optimizer", "batch_stats")  # the items that are trees of them; all others are JSON


def sum_of(name: str, item: Any) -> int:
    """What the manifest says of an item."""
    return checksum(item) if name in ARRAYS else zlib.crc32(json.dumps(item, sort_keys=True).encode())


def checksum(tree: Any) -> int:
    """Below 2^32, another one whenever a single number of the tree is another: the same on any mesh of devices.

    The sum, without regard to overflow, of all numbers' bits, each times an odd number that depends on its place.
    """
    # One array at a time: the few programs there are, one for each shape, serve every tree.
    sums = [weighted_sum(leaf, np.uint32(offset)) for offset, leaf in enumerate(jax.tree.leaves(tree))]
    return sum(map(int, jax.device_get(sums))) % 2**32


@jax.jit
def weighted_sum(array: jax.Array, offset: jax.Array) -> jax.Array:
    """uint32 [], an array's part in the checksum of a tree in which `offset` arrays come before it."""
    bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
    place, stride = offset, 1
    for axis in reversed(range(array.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


def check_arrays(folder: epath.PathLike, shapes: Iterable[tuple[int, ...]]) -> None:
    """Reads back an item of a checkpoint, as Orbax writes it: arrays of these shapes, with all their parts.

    The bytes are read and not compared: they were written a moment ago and come from where the system keeps them. What
    this finds are files that were never written, never got their names, or are shorter than they should be. It takes a
    tenth of the time of writing, or less.

    Raises ValueError or OSError.
    """
    folder = epath.Path(folder)
    for file in (folder / _ABOUT_ALL, *(file for pattern in _MAY_BE for file in folder.glob(pattern))):
        json.loads(file.read_bytes())
    there, wanted, found = set(), set(), collections.Counter()
    for name, content in _contents(folder):
        there.add(name)
        if name.endswith(_ABOUT_ONE):
            shape, part = (json.loads(content)[key] for key in ("shape", "chunks"))
            found[tuple(shape)] += 1
            parts = itertools.product(*(range(-(-size // step)) for size, step in zip(shape, part, strict=True)))
            wanted |= {name.removesuffix(_ABOUT_ONE) + (".".join(map(str, place)) or "0") for place in parts}
    expected = collections.Counter(shapes)
    if missing := expected - found:
        raise ValueError(f"{missing.total()} of {expected.total()} arrays are missing")
    if missing := wanted - there:
        raise ValueError(f"{min(missing)} is missing")


def _contents(folder: epath.PathLike) -> Iterator[tuple[str, bytes]]:
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": key_value_store(folder)}).result()
    keys = store.list().result()
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        for key, reading in zip(some, [store.read(key) for key in some], strict=True):
            if not (content := reading.result().value):  # as for a file that is gone
                raise ValueError(f"{key.decode()} is missing")
            yield key.decode(), content
