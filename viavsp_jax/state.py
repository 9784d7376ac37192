"""What learns and what does not: the split of the model, and the state of training."""

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx

from viavsp_jax.models.viavsp import ViAVSP

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything an update changes."""

    step: jax.Array  # int32, updates done
    trainable: Tree  # adapters and projector, float32
    opt_state: optax.OptState


def is_trainable(path: tuple[str, ...], _: Any) -> bool:
    """Adapters and projector learn; the language model is frozen."""
    return "lora" in path or "projector" in path


def split(model: ViAVSP) -> tuple[nnx.GraphDef, Tree, Tree]:
    """The model's structure, trainable and frozen weights, the latter two as nested dicts.

    `nnx.merge(structure, trainable, frozen)` gives the model back, inside or outside jit.
    """
    structure, trainable, frozen = nnx.split(model, is_trainable, ...)
    return structure, nnx.to_pure_dict(trainable), nnx.to_pure_dict(frozen)
