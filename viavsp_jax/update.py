"""The update and the validation step, and the state they work on."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from viavsp_jax import sharding
from viavsp_jax.experiment import Experiment
from viavsp_jax.initial import initial_weights
from viavsp_jax.losses import Metrics, label_loss, with_ctc
from viavsp_jax.optimizer import Part, only
from viavsp_jax.run_settings import TrainingSettings
from viavsp_jax.runtime import programs
from viavsp_jax.state import TrainState

Batch = dict[str, jax.Array]
Tree = dict[str, Any]

OTHERS: tuple[Part, ...] = ("projector", "lora", "ctc")  # than the encoder


def abstract_state(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of training as shapes with shardings (jax.ShapeDtypeStruct); nothing is computed."""
    whole = sharding.replicated(experiment.mesh)

    def placed(path, leaf):
        # Adam's moments of the encoder are twice its size.
        of_encoder = jax.tree_util.DictKey("encoder") in path
        return sharding.scattered(experiment.mesh, leaf.shape) if of_encoder else whole

    opt_state = jax.eval_shape(optimizer.init, experiment.trainable)
    opt_state = sharding.with_sharding(opt_state, jax.tree_util.tree_map_with_path(placed, opt_state))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(step, experiment.trainable, opt_state, experiment.batch_stats)


def init_state(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """The weights that training begins with and a new optimizer state, where `abstract_state` has them."""
    trainable, batch_stats = initial_weights(experiment)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(experiment, optimizer))
    opt_state = programs.jit(experiment.mesh, optimizer.init, out_shardings=shardings.opt_state)(trainable)
    return TrainState(jax.device_put(jnp.int32(0), shardings.step), trainable, opt_state, batch_stats)


def make_train_step(
    structure: nnx.GraphDef,
    optimizer: optax.GradientTransformationExtraArgs,
    settings: TrainingSettings,
    parts: tuple[Part, ...] = OTHERS,
    passes: Callable[[Batch], Batch] | None = None,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]:
    """The update: gradients of the parts that learn, metrics of the weights before it. To be jitted.

    While the encoder does not learn, it runs without dropout, and neither its weights nor its moments change.
    `passes` cuts a batch [B, …] into [N, B / N, …], which are run one after the other and make one update.
    """
    train_encoder = "encoder" in parts

    def gradients_of(trainable: Tree, batch_stats: Tree, frozen: Tree, batch: Batch, key: jax.Array):
        """Of some rows: gradients of their mean loss, metrics and the encoder's statistics behind them."""

        def loss(trainable):
            model = nnx.merge(structure, trainable, batch_stats, frozen)
            logits, ctc = model.outputs(batch, key, settings.remat, train_encoder)
            found = label_loss(logits, batch["targets"], batch["weights"], settings.label_smoothing, batch["modality"])
            value, metrics = with_ctc(*found, ctc, batch.get("units"), settings.ctc_weight)
            return value, (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        gradients, (metrics, batch_stats) = jax.grad(loss, has_aux=True)(trainable)
        return only(parts, gradients), metrics, batch_stats

    def summed(state: TrainState, frozen: Tree, batch: Batch, key: jax.Array):
        """The same of all rows, pass by pass."""

        def add(before, numbered):
            total, metrics, batch_stats = before
            number, rows = numbered
            gradients, new, batch_stats = gradients_of(
                state.trainable, batch_stats, frozen, rows, jax.random.fold_in(key, number)
            )
            total = jax.tree.map(lambda sum, x: sum + new.loss.count * x, total, gradients)
            return (total, jax.tree.map(jnp.add, metrics, new), batch_stats), None

        rows = passes(batch)
        first = {name: x[0] for name, x in rows.items()}
        zeros = jax.eval_shape(gradients_of, state.trainable, state.batch_stats, frozen, first, key)[:2]
        start = *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros), state.batch_stats
        numbers = jnp.arange(len(rows["tokens"]))
        (total, metrics, batch_stats), _ = jax.lax.scan(add, start, (numbers, rows))
        utterances = jnp.maximum(metrics.loss.count, 1)
        return jax.tree.map(lambda x: x / utterances, total), metrics, batch_stats

    def train_step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        if passes is None:
            found = gradients_of(state.trainable, state.batch_stats, frozen, batch, key)
        else:
            found = summed(state, frozen, batch, key)
        gradients, metrics, batch_stats = found
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.trainable, train_encoder=train_encoder, step=state.step
        )
        trainable = optax.apply_updates(state.trainable, only(parts, updates))
        metrics = metrics.of_update(optax.tree.norm(gradients))
        return TrainState(state.step + 1, trainable, opt_state, batch_stats), metrics

    return train_step


def jit_train_step(
    experiment: Experiment, optimizer: optax.GradientTransformationExtraArgs, parts: tuple[Part, ...] = OTHERS
) -> jax.stages.Wrapped:
    """(state, frozen, batch) → state, metrics; the buffers of the state are handed on from update to update.

    Compiles without weights too: `.lower(abstract_state(experiment, optimizer), experiment.frozen, batch)`.
    """
    c, mesh = experiment.settings, experiment.mesh
    several = 0 < c.training.device_rows < c.data.rows // sharding.pieces(mesh)
    passes = functools.partial(sharding.passes, mesh, device_rows=c.training.device_rows) if several else None
    step = make_train_step(experiment.structure, optimizer, c.training, parts, passes)
    # Pinned, so that the state keeps its place.
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(experiment, optimizer))
    return programs.jit(
        experiment.mesh, step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(experiment.mesh))
    )


def jit_validation_step(experiment: Experiment) -> jax.stages.Wrapped:
    """(state, frozen, batch) → metrics of the batch without dropout."""

    def validation_step(state: TrainState, frozen: Tree, batch: Batch) -> Metrics:
        model = nnx.merge(experiment.structure, state.trainable, state.batch_stats, frozen)
        logits, ctc = model.outputs(batch)
        found = label_loss(logits, batch["targets"], batch["weights"], modality=batch["modality"])
        return with_ctc(*found, ctc, batch.get("units"), 0.0)[1]

    return programs.jit(experiment.mesh, validation_step, out_shardings=sharding.replicated(experiment.mesh))
