"""The update against its definition, and a run against the same run interrupted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_run import small_config
from tensorboard_events import scalars

from viavsp_jax import experiment, sharding, state, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data import pipeline
from viavsp_jax.errors import InputError
from viavsp_jax.metrics import label_loss
from viavsp_jax.optimizer import make_optimizer


@pytest.fixture
def config(folders):
    return small_config(*folders)


def loaded(config):
    """Experiment, trainable weights with adapters that matter, frozen weights, and one batch."""
    exp = experiment.load_experiment(config)
    rng = np.random.default_rng(0)
    trainable = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), exp.init_trainable())
    return exp, trainable, exp.load_frozen(), next(pipeline.training_batches(config, exp.prompt))


def test_what_learns_and_what_does_not(config):
    exp = experiment.load_experiment(config)
    names = {"/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(exp.trainable)}
    adapters = {f"llm/layers/{name}/lora/{matrix}" for name in "qkv" for matrix in "ab"}
    assert names == adapters | {"projector/kernel", "projector/bias"}
    frozen = jax.tree_util.tree_leaves_with_path(exp.frozen)
    assert len(frozen) == 12 and not any("lora" in str(path) for path, _ in frozen)


def test_packed_gradient_is_the_mean_over_single_utterances(config):
    config.lora.dropout = 0.0
    exp, trainable, frozen, batch = loaded(config)

    @jax.jit
    def gradient(batch):
        def loss(trainable):
            return label_loss(nnx.merge(exp.structure, trainable, frozen)(batch), batch["targets"], batch["weights"])[0]

        return jax.value_and_grad(loss)(trainable)

    loss, packed = gradient(batch)
    singles = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            keep = batch["segment_ids"] == segment
            keep[np.arange(len(keep)) != row] = False
            owner = np.take_along_axis(batch["segment_ids"], batch["label_index"], 1)
            mine = (owner == segment) & (np.arange(len(keep)) == row)[:, None]
            single = batch | {
                "segment_ids": batch["segment_ids"] * keep,
                "weights": batch["weights"] * mine,
            }
            singles.append(gradient(single))
    assert len(singles) > 3
    np.testing.assert_allclose(loss, np.mean([one for one, _ in singles]), rtol=1e-5)
    mean = jax.tree.map(lambda *xs: np.mean(xs, 0), *[tree for _, tree in singles])
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(packed), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=1e-4, err_msg=str(path))


def test_update_changes_everything_that_learns_and_donates_nothing_frozen(config):
    exp, trainable, frozen, batch = loaded(config)
    optimizer, _ = make_optimizer(config)
    before = jax.device_get((trainable, frozen))
    start = state.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    step = jax.jit(train.make_train_step(exp.structure, optimizer, config), donate_argnums=0)
    after, metrics = step(start, frozen, sharding.put_batch(exp.mesh, batch))
    assert int(after.step) == 1 and float(metrics.loss.count) > 3
    for a, b in zip(jax.tree.leaves(after.trainable), jax.tree.leaves(before[0]), strict=True):
        assert not np.array_equal(a, b) and np.isfinite(a).all()
    for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(before[1]), strict=True):
        assert np.array_equal(a, b)


def test_every_setting_of_the_update_changes_it(config):
    exp, trainable, frozen, batch = loaded(config)
    optimizer, _ = make_optimizer(config)
    start = state.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))

    def moments(**settings):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(settings)
        structure = experiment.load_experiment(changed).structure
        step = jax.jit(train.make_train_step(structure, optimizer, changed))
        after, _ = step(start, frozen, batch)
        return float(optax.tree.norm(after.opt_state[0].mu)), step, after

    norm, step, after = moments()
    assert float(optax.tree.norm(step(start, frozen, batch)[0].opt_state[0].mu)) == norm
    later = state.TrainState(jnp.int32(1), trainable, start.opt_state)
    assert float(optax.tree.norm(step(later, frozen, batch)[0].opt_state[0].mu)) != norm, "dropout varies by update"
    for remat in (False, True):
        changed = config.copy_and_resolve_references()
        changed.remat = remat
        jaxpr = jax.make_jaxpr(train.make_train_step(exp.structure, optimizer, changed))(start, frozen, batch)
        assert ("remat" in str(jaxpr)) == remat
    norms = [norm] + [moments(**one)[0] for one in ({"label_smoothing": 0.2}, {"seed": 5}, {"lora.dropout": 0.0})]
    assert len(set(norms)) == len(norms)


def test_interrupted_run_equals_uninterrupted_one_bit_for_bit(config, tmp_path):
    train.train(config, tmp_path / "whole")
    half = config.copy_and_resolve_references()
    half.updates = 2
    train.train(half, tmp_path / "parts")
    assert Checkpoints(tmp_path / "parts").latest_step() == 2
    train.train(config, tmp_path / "parts")
    exp = experiment.load_experiment(config)
    whole, parts = (Checkpoints(tmp_path / name).restore_trainable(4, exp.trainable) for name in ("whole", "parts"))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert np.array_equal(a, b)
    curves = [scalars(tmp_path / name / "tensorboard") for name in ("whole", "parts")]
    assert curves[0] == curves[1] and set(curves[0]["valid/accuracy"]) == {2, 4}
    assert curves[0]["train/loss"][4] < curves[0]["train/loss"][2]


@pytest.mark.parametrize(("log_every", "update"), [(1, 2), (100, 2)])
def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(config, tmp_path, log_every, update):
    config.optimizer.peak_lr, config.log_every = 1e30, log_every
    with pytest.raises(InputError, match=f"the loss is nan at update {update}, expected a number"):
        train.train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() is None
