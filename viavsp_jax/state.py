"""The split of the model into trainable and frozen weights, and the state of training."""

import dataclasses
import functools
from typing import Any

import jax
import optax
from flax import nnx

from viavsp_jax.models.viavsp import ModelConfig, ViAVSP

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything an update changes."""

    step: jax.Array  # int32, updates done
    trainable: Tree  # adapters, projector and, if there are any, the encoder and the CTC head, float32
    opt_state: optax.OptState
    batch_stats: Tree = dataclasses.field(default_factory=dict)  # of the encoder's BatchNorm


def is_trainable(path: tuple[str, ...], variable: nnx.Variable) -> bool:
    """Adapters, projector, CTC head and encoder are; the encoder's statistics and the language model are not."""
    if "encoder" in path:
        return not isinstance(variable, nnx.BatchStat)
    return any(part in path for part in ("lora", "projector", "ctc"))


def split(model: ViAVSP) -> tuple[nnx.GraphDef, Tree, Tree]:
    """The model's structure, trainable and frozen weights, the latter two as nested dicts.

    Among the frozen ones are, under `encoder`, the statistics of its BatchNorm.

    `nnx.merge(structure, trainable, frozen)` gives the model back, inside or outside jit.
    """
    structure, trainable, frozen = nnx.split(model, is_trainable, ...)
    return structure, nnx.to_pure_dict(trainable), nnx.to_pure_dict(frozen)


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, Tree, Tree]:
    """As `split` of a model of this shape; with shapes (jax.ShapeDtypeStruct) for weights. Nothing is computed."""
    return split(_abstract(config))


@functools.cache  # the check, training and evaluation of one command each ask for it
def _abstract(config: ModelConfig) -> ViAVSP:
    return nnx.eval_shape(lambda: ViAVSP(config, nnx.Rngs(params=0)))
