"""The reference's trained checkpoint, taken up: its numbers, its moments, and what is said when it does not fit."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from places import GOLDEN, ROOT
from recorded_file import as_pytorch_reads
from safetensors.torch import load_file
from small_corpus import write_encoder
from small_run import make_shards

from convert import from_reference
from convert.checkpoints import read_fairseq, read_moments
from convert.names import REFERENCE_ENCODER, flatten, tensors
from convert.pretrained import PRETRAINING_FILE
from tests.parity import avsp
from tests.parity.rows import Golden
from viavsp_jax import evaluate, experiment, train, update
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.experiment import load_experiment
from viavsp_jax.losses import label_loss
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.prepare.features.avhubert_torch import load_encoder
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError

pytest_plugins = ["reference_checkpoint"]


def adam(opt_state):
    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)  # noqa: E731
    return next(filter(is_adam, jax.tree.leaves(opt_state, is_leaf=is_adam)))


def restored(config, workdir):
    exp = experiment.load_experiment(config)
    checkpoints = Checkpoints(workdir)
    return checkpoints.restore(
        checkpoints.best_step(), update.init_state(exp, make_optimizer(read_settings(config).optimizer)[0]), None
    )


def by_name(tree):
    flat = flatten(tree)
    return {tensor.reference_name: tensor.to_theirs(flat[tensor.path][tensor.index]) for tensor in tensors(tree)}


@pytest.mark.parametrize("number", ["0", "1"])
def test_model_gives_the_recorded_logits_and_loss(config, workdir, number):
    """From the work folder, as evaluation takes it up."""
    exp = experiment.load_experiment(config)
    checkpoints = Checkpoints(workdir)
    trainable = checkpoints.restore_trainable(checkpoints.best_step(), exp.trainable)
    golden = Golden(GOLDEN)
    batch = avsp.packed(avsp.load_model(golden, "gqa"), [avsp.record(golden, "gqa", number, "av")], 1)
    arrays = golden.arrays(f"avsp/gqa_sample{number}_av.npz")
    logits = nnx.merge(exp.structure, trainable, exp.load_frozen())(batch)
    np.testing.assert_allclose(logits[0], arrays["logits"][0][batch["label_index"][0]], atol=1e-4)
    np.testing.assert_allclose(label_loss(logits, batch["targets"], batch["weights"])[0], arrays["loss"], rtol=1e-5)


def test_weights_moments_and_update_number_are_the_files(best, config, workdir):
    theirs, state = as_pytorch_reads(best), restored(config, workdir)
    weights = by_name(state.trainable)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, theirs["model"][name])
    assert int(state.step) == theirs["optimizer_history"][-1]["num_updates"] > 0
    # By PyTorch's own count: the parameters of the model, those of the encoder first.
    optimizer = theirs["last_optimizer_state"]
    parameters = [name for name in theirs["model"] if not name.endswith(("_mean", "_var", "_tracked"))]
    assert len(parameters) == len(optimizer["param_groups"][0]["params"])
    mu, nu = by_name(adam(state.opt_state).mu), by_name(adam(state.opt_state).nu)
    assert len(mu) == len(optimizer["state"]) == len(weights)
    for index, entry in optimizer["state"].items():
        np.testing.assert_array_equal(mu[parameters[index]], entry["exp_avg"])
        np.testing.assert_array_equal(nu[parameters[index]], entry["exp_avg_sq"])
        assert int(adam(state.opt_state).count) == entry["step"]


def test_moments_are_as_old_as_the_training_trace(best):
    names = [name for name in read_fairseq(best).model if not name.startswith(REFERENCE_ENCODER)]
    moments = read_moments(best, names)
    assert moments.step == len(np.load(GOLDEN / "train" / "encoder_eval_trace.npz")["gnorm"])
    assert all(moments.exp_avg[name].abs().max() > 0 and (moments.exp_avg_sq[name] >= 0).all() for name in names)


def test_schedule_goes_on_where_it_was(best, config, workdir):
    state = restored(config, workdir)
    optimizer, schedule = make_optimizer(read_settings(config).optimizer)
    assert float(schedule(int(state.step))) == pytest.approx(
        as_pytorch_reads(best)["last_optimizer_state"]["param_groups"][0]["lr"]
    )
    gradients = jax.tree.map(jnp.ones_like, state.trainable)
    updates, _ = jax.jit(optimizer.update)(gradients, state.opt_state, state.trainable)
    counts = [int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0]
    assert counts and set(counts) == {int(state.step)} and jax.tree.all(jax.tree.map(jnp.any, updates))


def test_restart_takes_the_weights_only(best, config, workdir, tmp_path, capsys):
    from_reference.convert(best, load_experiment(config), tmp_path / "new", restart=True)
    assert "update 0" in capsys.readouterr().out
    state, continued = restored(config, tmp_path / "new"), restored(config, workdir)
    assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert jax.tree.all(jax.tree.map(np.array_equal, state.trainable, continued.trainable))


def test_training_and_evaluation_take_it_up(config, workdir, tmp_path, capsys):
    """Two more updates, a validation that replaces the unknown accuracy, and a report."""
    start = int(restored(config, workdir).step)
    config.data.path = str(make_shards(tmp_path / "shards" / "av_clean", width=config.data.feature_width).parent)
    config.data.row = {"positions": 384, "frames": 128, "labels": 192, "clips": 2, "window": 384}
    config.updates, config.evaluate.rows, config.evaluate.decoding.max_new_tokens, config.remat = (
        start + 2,
        8,
        5,
        "none",
    )
    before = evaluate.evaluate(config, workdir)["av_clean"]
    assert before["clips"] == 5 and f"checkpoint of update {start}" in capsys.readouterr().out
    train.train(config, workdir)
    checkpoints = Checkpoints(workdir)
    assert checkpoints.best_step() == checkpoints.latest_step() == start + 2
    assert checkpoints.accuracy(start + 2) > 0


def test_encoder_equals_the_checkpoints(best, avhubert, encoder, tmp_path):
    theirs = {
        name.removeprefix(REFERENCE_ENCODER): tensor
        for name, tensor in as_pytorch_reads(best)["model"].items()
        if name.startswith(REFERENCE_ENCODER)
    }
    state = load_encoder(encoder).state_dict() | load_file(encoder / PRETRAINING_FILE)
    assert state.keys() == theirs.keys() and all(torch.equal(state[name], theirs[name]) for name in theirs)
    # The config may also come from a folder.
    from_reference.convert_encoder(best, encoder, tmp_path / "again")
    for path in encoder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def changed(best, path, **entries):
    """The recorded checkpoint with other entries."""
    content = {name: value for name, value in as_pytorch_reads(best).items() if name != "task_state"}
    for name, change in entries.items():
        content[name] = change(content[name])
    torch.save(content, path)
    return path


def without_state(index):
    def change(optimizer):
        del optimizer["state"][index]
        return optimizer

    return change


def replaced(name, value):
    return lambda model: model | {name: value(model[name])}


LORA_A = "decoder.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"last_optimizer_state": lambda _: None}, "it holds no optimizer state"),
        ({"last_optimizer_state": without_state(160)}, "no state for decoder.*layers.0.self_attn.v_proj.lora_A"),
        ({"last_optimizer_state": lambda o: o | {"param_groups": [{"params": [0, 1]}]}}, "is for 2 parameters"),
        (
            {"last_optimizer_state": lambda o: {**o, "state": {i: s | {"step": i} for i, s in o["state"].items()}}},
            "states are of different updates",
        ),
        (
            {"model": lambda model: dict(reversed(model.items()))},
            "no state for|has shape",
        ),
    ],
)
def test_moments_that_cannot_be_matched_start_at_zero(best, config, tmp_path, capsys, entries, message):
    path = changed(best, tmp_path / "changed.pt", **entries)
    state = from_reference.read_state(path, experiment.load_experiment(config))
    out = capsys.readouterr().out.strip()
    assert "\n" not in out and out.endswith("; Adam starts with zero moments")
    assert re.search(message, out), out
    assert int(adam(state.opt_state).count) == 0 and not np.any(adam(state.opt_state).mu["projector"]["bias"])
    assert int(state.step) == as_pytorch_reads(best)["optimizer_history"][-1]["num_updates"]


@pytest.mark.parametrize("trained", ["all", "learnt"])
def test_flat_moments_of_half_precision_training(best, config, workdir, tmp_path, trained):
    """fairseq's FP16Optimizer keeps one vector for all parameters."""
    theirs = as_pytorch_reads(best)
    parameters = [name for name in theirs["model"] if not name.endswith(("_mean", "_var", "_tracked"))]
    entries = theirs["last_optimizer_state"]["state"]
    if trained == "learnt":
        places = list(entries)
    else:
        places = range(len(parameters))
    flat = {
        kind: torch.cat([
            entries[i][kind].flatten() if i in entries else torch.zeros(theirs["model"][parameters[i]].numel())
            for i in places
        ])
        for kind in ("exp_avg", "exp_avg_sq")
    }  # fmt: skip
    optimizer = {"state": {0: {"step": 30, **flat}}, "param_groups": [{"params": [0]}], "loss_scale": 4.0}
    path = changed(best, tmp_path / "half.pt", last_optimizer_state=lambda _: optimizer)
    state = from_reference.read_state(path, experiment.load_experiment(config))
    assert jax.tree.all(jax.tree.map(np.array_equal, state.opt_state, restored(config, workdir).opt_state))


@pytest.mark.parametrize(
    ("settings", "entries", "message"),
    [
        ({"lora": {"rank": 8}}, {}, r"config.lora.rank is 8, its tensors have \[16\]"),
        ({"data": {"feature_width": 12}}, {}, r"config.data.feature_width is 12, its tensors have \[64\]"),
        ({}, {"model": lambda m: {n: v for n, v in m.items() if n != LORA_A}}, f"missing: {LORA_A}$"),
        ({}, {"model": lambda m: m | {"decoder.x": m[LORA_A], "y": m[LORA_A]}}, "unknown: decoder.x, y$"),
        ({}, {"model": replaced(LORA_A, lambda v: v[:, :5])}, r"lora_A.default.weight is \[16, 5\] and not \[16, 64\]"),
        ({}, {"model": replaced(LORA_A, lambda v: v * np.nan)}, f"{LORA_A} holds values that are not finite"),
        ({}, {"optimizer_history": lambda _: []}, "names no num_updates, expected them, or --restart"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(best, config, tmp_path, settings, entries, message):
    path = changed(best, tmp_path / "changed.pt", **entries)
    config.update(settings)
    with pytest.raises(InputError, match=f"changed.pt.*{message}"):
        from_reference.convert(path, load_experiment(config), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_language_model_and_other_encoder(best, config, tmp_path, llm):
    config.llm.path = str(llm)
    with pytest.raises(InputError, match=r"checkpoint_best.pt does not fit the language model in .*is \[16, 64\]"):
        from_reference.convert(best, load_experiment(config), tmp_path / "new")
    write_encoder(tmp_path / "other")
    with pytest.raises(InputError, match="checkpoint_best.pt: the weights do not fit the AV-HuBERT config: .*; "):
        from_reference.convert_encoder(best, tmp_path / "other", tmp_path / "encoder")


def test_work_folder_in_use(best, config, workdir):
    with pytest.raises(InputError, match="already holds a checkpoint"):
        from_reference.convert(best, load_experiment(config), workdir)


def test_command(best, avhubert, config, tmp_path):
    root = ROOT
    settings = {
        "dtype": "float32", "llm.path": config.llm.path, "data.feature_width": config.data.feature_width, "updates": 30,
    }  # fmt: skip
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "convert.from_reference", str(best), "--workdir", str(tmp_path / "work")]
    command += ["--encoder_output", str(tmp_path / "encoder"), "--avhubert", str(avhubert)]
    done = subprocess.run(
        [*command, "--config=configs/base.py", *arguments], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nothing is left to train" in done.stdout and (tmp_path / "encoder" / "model.safetensors").exists()
    trained = Checkpoints(tmp_path / "work").restore_config(30)
    assert trained["data"]["feature_width"] == config.data.feature_width
    assert json.loads(config.to_json())["lora"] == trained["lora"]
    for rest, message in (
        ([], "--config is missing"),
        (["--config=configs/none.py"], "none.py"),
        (["--config=configs/base.py", "--config.lora.rang=3"], "rang"),
        (["--config=configs/base.py", "stray"], "unexpected argument stray"),
    ):
        with pytest.raises(InputError, match=message):
            from_reference.read_config(rest)
