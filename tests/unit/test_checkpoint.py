"""Checkpoints: which are kept, what comes back, and what is said when something is wrong."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from odd_folders import ODD_NAMES
from small_run import small_config

from viavsp_jax import checkpoint, experiment, update
from viavsp_jax.compatibility import check_continues, check_fits
from viavsp_jax.data import pipeline
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime import paths
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.state import TrainState


@pytest.fixture
def config(folders):
    return small_config(*folders)


def test_keeps_the_last_and_the_best_and_restores_exactly(config, tmp_path):
    exp = experiment.load_experiment(config)
    optimizer, _ = make_optimizer(read_settings(config).optimizer)
    state = update.init_state(exp, optimizer)
    batches = pipeline.training_batches(exp.settings.data, exp.prompt)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    expected = {}
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, 0.3), (4, 0.4)):
        next(batches)
        bigger = jax.tree.map(lambda x, step=step: x + step if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
        state = type(state)(jnp.int32(step), bigger.trainable, bigger.opt_state)
        made_by = {"data": {"av_clean": f"{step}"}}
        checkpoints.save(state, batches, config.to_json(), exp.fits, made_by, {"accuracy": accuracy, "loss": 1.0})
        expected[step] = jax.device_get(state), next(batches)
    checkpoints.close()
    again = checkpoint.Checkpoints(tmp_path)
    assert sorted(int(path.name) for path in again.folder.iterdir()) == [2, 4]
    assert (again.latest_step(), again.best_step()) == (4, 2)
    fresh = pipeline.training_batches(exp.settings.data, exp.prompt)
    restored = again.restore(4, update.init_state(exp, optimizer), fresh)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected[4][0]), strict=True):
        assert np.array_equal(a, b)
    following = next(fresh)
    assert all(np.array_equal(following[name], value) for name, value in expected[4][1].items())
    assert again.restore_config(2)["lora"]["rank"] == config.lora.rank
    check_fits(again, 2, exp.fits)
    with pytest.raises(InputError, match=r"checkpoint 2 in .* was trained with config.lora.rank 16, not 8"):
        check_fits(again, 2, exp.fits | {"config.lora.rank": 8})
    check_continues(again, 4, config)
    config.optimizer.peak_lr = 1e-4
    check_continues(again, 4, config)
    config.data.rows, config.seed, config.data.train = 4, 1, ("av_clean", "audio_clean")
    words = r"config.data.rows 2, not 4, config.data.train \['av_clean'\], not .*, config.seed 0, not 1: continue"
    with pytest.raises(InputError, match=f"checkpoint 4 in .* was saved with {words}"):
        check_continues(again, 4, config)
    assert again.restore_run_info(2) == {"saved": again.restore_run_info(2)["saved"], "data": {"av_clean": "2"}}
    best = again.restore_trainable(2, exp.trainable)
    assert np.array_equal(best["projector"]["bias"], expected[2][0].trainable["projector"]["bias"])


def test_saving_goes_on_in_the_background_whatever_becomes_of_the_state(config, tmp_path):
    weights = np.random.default_rng(0).normal(size=8 << 20).astype(np.float32)  # not written at once
    state = TrainState(jnp.int32(1), {"w": jnp.array(weights)}, ())
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, None, config.to_json(), {}, {}, {"accuracy": 0.5})
    assert not (checkpoints.folder / "1").exists(), "the folder gets its name when all is written"
    update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    jax.block_until_ready(update(state))
    checkpoints.wait()
    assert (checkpoints.folder / "1").exists()
    restored = checkpoints.restore_trainable(1, {"w": jax.ShapeDtypeStruct(weights.shape, weights.dtype)})
    np.testing.assert_array_equal(restored["w"], weights)


def numbers(step: int) -> TrainState:
    return TrainState(jnp.int32(step), {"w": jnp.full((30, 40), step, jnp.float32)}, ())


def restored(workdir, step: int) -> np.ndarray:
    abstract = {"w": jax.ShapeDtypeStruct((30, 40), jnp.float32)}
    return np.asarray(checkpoint.Checkpoints(workdir).restore_trainable(step, abstract)["w"])


@pytest.mark.parametrize("name", ODD_NAMES)
def test_folders_of_any_name(config, tmp_path, name):
    checkpoints = checkpoint.Checkpoints(tmp_path / name, keep=1)
    for step in (1, 2):
        checkpoints.save(numbers(step), None, config.to_json(), {}, {}, {"accuracy": 0.5})
    checkpoints.close()
    assert [path.name for path in (tmp_path / name / "checkpoints").iterdir()] == ["2"]
    assert (restored(tmp_path / name, 2) == 2).all()


def test_an_older_checkpoint_stays_until_the_next_can_be_read(config, tmp_path, monkeypatch):
    """Orbax does not find what the processes wrote, as where it takes the folder for a pattern."""
    workdir = tmp_path / "run [2]"
    checkpoints = checkpoint.Checkpoints(workdir, keep=1)
    checkpoints.save(numbers(1), None, config.to_json(), {}, {}, {"accuracy": 0.5})
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path()), "glob", paths._joining)
        checkpoints.save(numbers(2), None, config.to_json(), {}, {}, {"accuracy": 0.75})
        with pytest.raises(InputError, match=(
            r"checkpoints: a checkpoint could not be written \(its trainable cannot be read back: 1 of 1 arrays are "
            r"missing\), expected a disk .*; the last one is of update 1, from which the same command goes on$"
        )):  # fmt: skip
            checkpoints.wait()
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (1, 1)
    assert (restored(workdir, 1) == 1).all()
    again = checkpoint.Checkpoints(workdir, keep=1)
    again.save(numbers(2), None, config.to_json(), {}, {}, {"accuracy": 0.75})
    again.close()
    assert [path.name for path in again.folder.iterdir()] == ["2"] and (restored(workdir, 2) == 2).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_text(file.read_text()[:6]), "the metrics of a checkpoint in it cannot be read"),
        (lambda file: file.write_text(file.read_text().replace("5", "7")), "metrics is not what was saved"),
        (lambda file: shutil.rmtree(file.parent), "its metrics are missing"),
    ],
)
def test_damaged_metrics_choose_no_checkpoint(config, tmp_path, damage, message):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    for step, accuracy in ((1, 0.5), (2, 0.25)):
        state = TrainState(jnp.int32(step), {"w": jnp.zeros(3)}, ())
        checkpoints.save(state, None, config.to_json(), {}, {}, {"accuracy": accuracy})
    assert checkpoints.best_step() == 1 and checkpoints.accuracy(2) == 0.25
    checkpoints.close()
    damage(checkpoints.folder / "1" / "metrics" / "metrics")
    with pytest.raises(InputError, match=message):
        checkpoint.Checkpoints(tmp_path).choose("best")


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint: train first"):
        checkpoint.Checkpoints(tmp_path).best_step()


def test_addresses_of_buckets_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.fspath(checkpoint._absolute(epath.Path("gs://bucket/run"))) == "gs://bucket/run"
    assert os.fspath(checkpoint._absolute(epath.Path("run"))) == str(tmp_path / "run")
