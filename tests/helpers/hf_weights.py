"""All weights of a Hugging Face folder at once, where convert.from_hf has one tensor in memory at a time."""

import numpy as np
from etils import epath
from flax import traverse_util

from convert import from_hf
from convert.names import Tree


def load_params(folder: epath.PathLike, dtype: str | None = None) -> Tree:
    """The frozen weights as a nested dict of numpy arrays; `dtype` None: as stored."""
    flat = {}
    for path, index, value in from_hf.weights(folder, *from_hf.plan(folder, dtype)):
        if index is ...:
            flat[path] = value
        else:
            flat.setdefault(path, []).append(value)
    return {"llm": traverse_util.unflatten_dict({path: np.asarray(value) for path, value in flat.items()}, sep="/")}
