"""Training that begins with the weights of another one."""

import jax
import numpy as np
import pytest
from small_run import WIDTH, make_shards, small_config

from convert import to_hf
from viavsp_jax import experiment, train
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.initial import initial_weights
from viavsp_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def earlier(folders, tmp_path_factory):
    """Config, work folder and export of a run of two updates."""
    config, folder = small_config(*folders), tmp_path_factory.mktemp("earlier")
    config.updates, config.checkpoint.every, config.checkpoint.keep = 2, 1, 2
    train.train(config, folder / "run")
    to_hf.export(folder / "run", folder / "export", step="2")
    return config, folder / "run", folder / "export"


def begun(config, source):
    config = config.copy_and_resolve_references()
    config.init_from = str(source)
    return experiment.load_experiment(config)


@pytest.mark.parametrize("which", ["run", "checkpoint", "export"])
def test_weights_are_those_of_the_other_training(earlier, which):
    config, run, export = earlier
    step = Checkpoints(run).best_step() if which == "run" else {"checkpoint": 1, "export": 2}[which]
    source = {"run": run, "checkpoint": run / "checkpoints" / "1", "export": export}[which]
    exp = begun(config, source)
    found, _ = initial_weights(exp)
    expected = Checkpoints(run).restore_trainable(step, exp.trainable)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, exp.trainable)


def test_a_run_begins_with_a_new_optimizer_on_another_corpus(earlier, tmp_path, capsys):
    config, run, _ = earlier
    config = config.copy_and_resolve_references()
    make_shards(tmp_path / "shards" / "av_clean", seed=3)
    config.data.path, config.init_from, config.updates = str(tmp_path / "shards"), str(run), 1
    config.prompt.instruction = "Write: "
    config.optimizer.peak_lr = 1e-12
    train.train(config, tmp_path / "work")
    assert f"beginning with the weights of {run}" in capsys.readouterr().err
    exp = experiment.load_experiment(config)
    old, new = Checkpoints(run), Checkpoints(tmp_path / "work")
    expected = old.restore_trainable(old.best_step(), exp.trainable)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), new.restore_trainable(1, exp.trainable), expected
    )
    # Once it is under way, it needs the other one no more. Lengths that are shares of more updates move its rate.
    config.updates, config.init_from = 2, str(tmp_path / "gone")
    with config.ignore_type():  # of a config that was copied, types are those of its values
        config.optimizer.warmup_updates = 1.0
    train.train(config, tmp_path / "work")
    said = capsys.readouterr().err
    assert "continuing from update 1" in said
    assert "since update 1: the learning rate was 1e-12, is 5.05e-13" in said


@pytest.mark.parametrize(("which", "changed", "message"), [
    ("run", {"lora.rank": 8}, "was trained with config.lora.rank 16, not 8"),
    ("export", {"lora.rank": 8}, "was trained with config.lora.rank 16, not 8"),
    ("export", {"lora.targets": ("q",)}, "was trained with config.lora.targets"),
    ("nothing", {}, "expected a work folder, one of its checkpoints or an export"),
    ("run/checkpoints/7", {}, "expected a work folder, one of its checkpoints or an export"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(earlier, which, changed, message):
    config, run, _ = earlier
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changed)
    with pytest.raises(InputError, match=message):
        initial_weights(begun(config, run.parent / which))


def test_a_damaged_export(earlier, tmp_path):
    config, _, export = earlier
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.json").write_bytes((export / "config.json").read_bytes())
    with pytest.raises(InputError, match="adapter_model.safetensors cannot be read"):
        initial_weights(begun(config, tmp_path))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(
        (export / "adapter" / "adapter_model.safetensors").read_bytes()
    )
    (tmp_path / "projector.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match="projector.safetensors cannot be read"):
        initial_weights(begun(config, tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InputError, match="config.json cannot be read"):
        initial_weights(begun(config, tmp_path))


def test_the_width_of_other_features_is_refused(earlier, tmp_path):
    config, run, _ = earlier
    config = config.copy_and_resolve_references()
    config.data.feature_width = WIDTH + 4
    with pytest.raises(InputError, match=f"was trained with config.data.feature_width {WIDTH}, not {WIDTH + 4}"):
        initial_weights(begun(config, run))
