"""The encoder that the reference trained, taken up into the model and given back, with what its Adam remembers."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import torch
from places import GOLDEN
from recorded_file import as_pytorch_reads
from reference_checkpoint import recorded_config

from convert import from_reference, to_reference
from convert.checkpoints import BUFFERS, read_fairseq
from convert.fairseq_container import PRETRAINED_ONLY, adam_state
from convert.names import REFERENCE_ENCODER, encoder_order, flatten
from convert.pretrained import PRETRAINING_FILE
from convert.work_folder import open_work_folder
from viavsp_jax import experiment, update
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.experiment import load_experiment
from viavsp_jax.optimizer import make_optimizer
from viavsp_jax.run_settings import read_settings
from viavsp_jax.runtime.errors import InputError

pytest_plugins = ["reference_checkpoint"]
FREEZE, LEARNT = 18, 12  # updates, of 30


@pytest.fixture
def config(best, llm_gqa, encoder):
    c = recorded_config(best, llm_gqa)
    c.encoder.train, c.encoder.path, c.encoder.freeze_updates = True, str(encoder), FREEZE
    return c


def parameters(model):
    return [name for name in model if name.rpartition(".")[2] not in BUFFERS]


def trained_encoder(best, path, flat=False):
    """The recorded checkpoint as if its encoder had learnt in the last updates; `flat` as half precision has it."""
    content = {name: value for name, value in as_pytorch_reads(best).items() if name != "task_state"}
    torch.manual_seed(0)
    states, model = content["last_optimizer_state"]["state"], content["model"]
    for place, name in enumerate(parameters(model)):
        if name.startswith(REFERENCE_ENCODER) and not name.endswith(PRETRAINED_ONLY):
            moments = {kind: torch.rand_like(model[name]) for kind in ("exp_avg", "exp_avg_sq")}
            states[place] = {"step": LEARNT, **moments}
    if flat:
        vectors = {
            kind: torch.cat([
                states[place][kind].flatten() if place in states else torch.zeros(model[name].numel())
                for place, name in enumerate(parameters(model))
            ])
            for kind in ("exp_avg", "exp_avg_sq")
        }  # fmt: skip
        content["last_optimizer_state"] = {"state": {0: {"step": 30, **vectors}}, "param_groups": [{"params": [0]}]}
    content["last_optimizer_state"]["state"] = dict(sorted(content["last_optimizer_state"]["state"].items()))
    torch.save(content, path)
    return path


def assert_same_optimizer(ours, theirs):
    assert ours["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]
    assert list(ours["state"]) == list(theirs["state"])
    for place, state in theirs["state"].items():
        assert ours["state"][place]["step"] == state["step"]
        assert all(torch.equal(ours["state"][place][kind], state[kind]) for kind in ("exp_avg", "exp_avg_sq"))


def counts(state):
    """Adam's and the schedule's count of each part."""
    parts = state.opt_state.inner_states
    return {name: [int(leaf) for leaf in jax.tree.leaves(parts[name]) if leaf.ndim == 0] for name in parts}


def test_round_trip_of_the_recorded_checkpoint_whose_encoder_was_frozen(best, config, tmp_path, capsys):
    from_reference.convert(best, load_experiment(config), tmp_path / "work")
    said = capsys.readouterr().out.splitlines()[0]
    assert said.endswith("more; Adam of the encoder starts with zero moments")
    assert "its optimizer has no state for encoder.w2v_model." in said
    exp = experiment.load_experiment(config)
    checkpoints = Checkpoints(tmp_path / "work")
    abstract = update.abstract_state(
        exp, make_optimizer(read_settings(config).optimizer)[0]
    )  # what training restores it to
    assert counts(checkpoints.restore(30, abstract, None)) == {"encoder": [0, 30 - FREEZE], "others": [30, 30]}
    to_reference.export(tmp_path / "work", fairseq=tmp_path / "back.pt")
    assert "note" not in capsys.readouterr().out
    there, back = as_pytorch_reads(best), torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back["model"]) == list(there["model"])
    for name, value in there["model"].items():
        assert back["model"][name].dtype == value.dtype and torch.equal(back["model"][name], value), name
    assert_same_optimizer(back["last_optimizer_state"], there["last_optimizer_state"])
    assert back["cfg"]["model"]["freeze_finetune_updates"] == FREEZE
    names = {"freeze_finetune_updates", "layerdrop", "activation_dropout"}
    assert names <= back["cfg"]["model"].keys() & there["cfg"]["model"].keys()
    assert pathlib.Path(back["cfg"]["model"]["w2v_path"]) == best


@pytest.mark.full
def test_moments_of_the_encoder_go_there_and_back(best, config, tmp_path, capsys):
    path = trained_encoder(best, tmp_path / "trained.pt")
    from_reference.convert(path, load_experiment(config), tmp_path / "work")
    assert "zero moments" not in capsys.readouterr().out
    assert counts(open_work_folder(tmp_path / "work").read_state()) == {"encoder": [LEARNT] * 2, "others": [30, 30]}
    to_reference.export(tmp_path / "work", fairseq=tmp_path / "back.pt", hf=tmp_path / "hf")
    there, back = (torch.load(one, weights_only=True) for one in (path, tmp_path / "back.pt"))
    assert_same_optimizer(back["last_optimizer_state"], there["last_optimizer_state"])
    from_reference.convert(tmp_path / "back.pt", load_experiment(config), tmp_path / "again")
    states = [open_work_folder(tmp_path / name).read_state() for name in ("work", "again")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert (tmp_path / "hf" / "model.safetensors").exists()


def test_flat_moments_of_half_precision_training(best, config, tmp_path):
    """Adam's count is then that of all weights; the schedule of the encoder is late all the same."""
    exp = experiment.load_experiment(config)
    apart, flat = (
        from_reference.read_state(trained_encoder(best, tmp_path / f"{flat}.pt", flat), exp) for flat in (False, True)
    )
    assert counts(flat) == {"encoder": [30, LEARNT], "others": [30, 30]}
    for part in ("encoder", "others"):
        ours, theirs = (adam_state(state.opt_state.inner_states[part]) for state in (flat, apart))
        jax.tree.map(np.testing.assert_array_equal, (ours.mu, ours.nu), (theirs.mu, theirs.nu))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(ours.mu))


def test_restart_takes_the_weights_and_statistics_only(best, config, tmp_path):
    exp = experiment.load_experiment(config)
    new = from_reference.read_state(trained_encoder(best, tmp_path / "trained.pt"), exp, restart=True)
    goes_on = from_reference.read_state(best, exp)
    assert int(new.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(new.opt_state))
    jax.tree.map(
        np.testing.assert_array_equal, (new.trainable, new.batch_stats), (goes_on.trainable, goes_on.batch_stats)
    )
    assert {leaf.dtype.name for leaf in flatten(new.batch_stats).values()} == {"float32", "int32"}


def test_weights_are_the_checkpoints_own_and_not_the_folders(best, config, encoder, tmp_path):
    """The folder gives the two weights that nothing trains; without it they are left out."""
    from_reference.convert(best, load_experiment(config), tmp_path / "work")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(encoder / "config.json", other)
    (other / "model.safetensors").write_bytes(b"not read")
    to_reference.export(tmp_path / "work", encoder=other, fairseq=tmp_path / "some.pt")
    there, some = read_fairseq(best).model, torch.load(tmp_path / "some.pt", weights_only=True)["model"]
    assert there.keys() - some.keys() == {REFERENCE_ENCODER + name for name in PRETRAINED_ONLY}
    assert all(torch.equal(value, there[name]) for name, value in some.items())
    shutil.copy(encoder / PRETRAINING_FILE, other)
    to_reference.export(tmp_path / "work", encoder=other, fairseq=tmp_path / "all.pt")
    assert torch.load(tmp_path / "all.pt", weights_only=True)["model"].keys() == there.keys()
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"num_heads": 2}))
    with pytest.raises(InputError, match=rf"trained with the encoder's num_heads {settings['num_heads']}, not 2"):
        to_reference.export(tmp_path / "work", encoder=other, fairseq=tmp_path / "no.pt")
    with pytest.raises(InputError, match="none holds no config.json: give the folder .* with --encoder"):
        to_reference.export(tmp_path / "work", encoder=tmp_path / "none", fairseq=tmp_path / "no.pt")
    assert not (tmp_path / "no.pt").exists()


BIAS = REFERENCE_ENCODER + "layer_norm.bias"


@pytest.mark.parametrize(("change", "message"), [
    (lambda model: {n: v for n, v in model.items() if not n.startswith(REFERENCE_ENCODER)}, "holds no encoder"),
    (lambda model: {n: v for n, v in model.items() if n != BIAS}, f"missing: {BIAS}$"),
    (lambda model: model | {BIAS: model[BIAS][:5]}, rf"does not fit the encoder in .*{BIAS} is \[5\] and not \[128\]"),
])  # fmt: skip
def test_an_encoder_that_does_not_fit_is_one_clear_error(best, config, tmp_path, change, message):
    content = {name: value for name, value in as_pytorch_reads(best).items() if name != "task_state"}
    torch.save(content | {"model": change(content["model"])}, tmp_path / "changed.pt")
    with pytest.raises(InputError, match=f"changed.pt.*{message}"):
        from_reference.convert(tmp_path / "changed.pt", load_experiment(config), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_order_of_the_references_modules_at_real_size():
    recorded = json.loads((GOLDEN / "keys" / "viavsp_llm_fairseq_checkpoint_best.json").read_text())["keys"]
    names = [name.removeprefix(REFERENCE_ENCODER) for name in recorded if name.startswith(REFERENCE_ENCODER)]
    assert len(names) == 536 and sorted(sorted(names), key=encoder_order) == names
