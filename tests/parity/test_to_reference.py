"""Back to the reference: bit-exact round trips, and names and shapes of the real sizes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from places import GOLDEN
from recorded_file import as_pytorch_reads
from safetensors.torch import load_file, save_file

from convert import from_reference, safetensors_files, to_reference
from convert.checkpoints import read_fairseq, read_moments
from convert.names import REFERENCE_ENCODER
from convert.pretrained import PRETRAINING_FILE
from convert.work_folder import open_work_folder
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.experiment import load_experiment
from viavsp_jax.llm_folder import llama_config
from viavsp_jax.runtime.errors import InputError

pytest_plugins = ["reference_checkpoint"]


@pytest.fixture
def given_back(workdir, encoder, tmp_path):
    """The checkpoint, taken up and given back."""
    to_reference.export(workdir, encoder=encoder, fairseq=tmp_path / "back.pt")
    return tmp_path / "back.pt"


def equal(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_round_trip_of_the_recorded_checkpoint(best, given_back):
    """Every weight and moment, bit for bit; the container as fairseq writes it."""
    there, back = read_fairseq(best), torch.load(given_back, weights_only=True)
    assert equal(there.model, back["model"]) and equal(there.model, read_fairseq(given_back).model)
    recorded = json.loads((GOLDEN / "avsp" / "checkpoint_best_gqa.keys.json").read_text())
    assert {name: type(value).__name__ for name, value in back.items()} == recorded["container"]
    assert back["optimizer_history"] == recorded["optimizer_history"]
    assert sorted(back["extra_state"]) == sorted(recorded["extra_state"])
    names = [name for name in there.model if not name.startswith(REFERENCE_ENCODER)]
    ours, theirs = read_moments(given_back, names), read_moments(best, names)
    assert equal(ours.exp_avg, theirs.exp_avg) and equal(ours.exp_avg_sq, theirs.exp_avg_sq)
    assert ours.step == theirs.step
    group, states = back["last_optimizer_state"]["param_groups"][0], back["last_optimizer_state"]["state"]
    (expected,) = recorded["last_optimizer_state"]["param_groups"]
    assert len(group["params"]) == expected["params"] == len({*group["params"]})
    assert len(states) == recorded["last_optimizer_state"]["state_entries"]
    assert list(states) == list(range(expected["params"] - len(states), expected["params"]))
    for name in ("betas", "eps", "weight_decay", "amsgrad", "lr"):
        assert group[name] == pytest.approx(tuple(expected[name]) if name == "betas" else expected[name])


def test_settings_have_the_references_names_and_values(best, given_back):
    theirs, ours = read_fairseq(best).cfg, read_fairseq(given_back).cfg
    paths = {"w2v_path", "llm_ckpt_path"}
    for section in ("criterion", "optimizer", "lr_scheduler", "optimization", "checkpoint", "model", "task"):
        for name, value in ours[section].items():
            assert name in theirs[section] and type(value) is type(theirs[section][name]), (section, name)
    for section in ("criterion", "optimizer", "lr_scheduler", "model", "task"):
        same = set(ours[section]) - paths - {"encoder_embed_dim"}
        assert {name: ours[section][name] for name in same} == {name: theirs[section][name] for name in same}
    assert ours["lr_scheduler"] == theirs["lr_scheduler"]
    assert ours["optimization"]["max_update"] == theirs["optimization"]["max_update"]
    assert Path(ours["model"]["llm_ckpt_path"]) == GOLDEN / "avsp" / "llm_gqa"
    assert Path(ours["model"]["w2v_path"]) == best


def test_ours_there_and_back(given_back, config, workdir, tmp_path):
    from_reference.convert(given_back, load_experiment(config), tmp_path / "again")
    states = [open_work_folder(folder).read_state() for folder in (workdir, tmp_path / "again")]
    assert jax.tree.all(jax.tree.map(np.array_equal, *states)) and int(states[0].step) > 0


def test_accuracy_and_step_of_the_checkpoint(config, workdir, encoder, tmp_path):
    exp, state = load_experiment(config), open_work_folder(workdir).read_state()
    later = type(state)(jnp.int32(33), jax.tree.map(lambda x: x + 1, state.trainable), state.opt_state)
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(later, None, config.to_json(), exp.fits, {}, {"accuracy": 0.625})
    checkpoints.close()
    to_reference.main(
        ["--workdir", str(workdir), "--encoder", str(encoder), "--fairseq", str(tmp_path / "best.pt"), "--step", "best"]
    )
    written = torch.load(tmp_path / "best.pt", weights_only=True)
    assert written["extra_state"]["best"] == written["extra_state"]["val_loss"] == 62.5
    assert written["optimizer_history"][-1]["num_updates"] == 33
    np.testing.assert_array_equal(written["model"]["avfeat_to_llm.bias"], later.trainable["projector"]["bias"])


def test_another_prompt_is_said(config, workdir, tmp_path, capsys):
    """The reference's code has its own."""
    to_reference.export(workdir, fairseq=tmp_path / "same.pt")
    assert "instruction" not in capsys.readouterr().out
    config = config.copy_and_resolve_references()
    config.prompt.instruction = "Write {target}: "
    exp, state = load_experiment(config), open_work_folder(workdir).read_state()
    checkpoints = Checkpoints(tmp_path / "asked", keep=1)
    checkpoints.save(state, None, config.to_json(), exp.fits, {}, {"accuracy": 0.5})
    checkpoints.close()
    to_reference.export(tmp_path / "asked", fairseq=tmp_path / "other.pt")
    assert "note: the reference's code has its own instruction and no chat" in capsys.readouterr().out


def test_hugging_face_form(best, workdir, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "FILE_BYTES", 4_000_000)
    to_reference.export(workdir, encoder=encoder, hf=tmp_path / "hf")
    files = sorted((tmp_path / "hf").glob("model-*-of-*.safetensors"))
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    written = {}
    for file in files:
        part = load_file(file)
        assert {index["weight_map"][name] for name in part} == {file.name} and not part.keys() & written.keys()
        written |= part
    assert len(files) > 2 and index["weight_map"].keys() == written.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    expected = json.loads((GOLDEN / "avsp" / "gqa_state_dict_keys.json").read_text())
    found = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in written.items()}
    assert {name: found[name] for name in expected} == expected
    trained, base = read_fairseq(best).model, load_file(GOLDEN / "avsp" / "llm_gqa" / "model.safetensors")
    for name, tensor in written.items():
        plain = name.removeprefix("decoder.base_model.model.").replace(".base_layer.", ".")
        assert torch.equal(tensor, trained[name] if name in expected else base.pop(plain)), name
    assert not base
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    names = json.loads((GOLDEN / "keys" / "viavsp_llm_hf.json").read_text())["hf_config"].keys()
    assert config.keys() <= names and config["layer_norm_first"] is True and config["model_type"] == "avsp_llm"
    assert config["num_classes"] == expected[REFERENCE_ENCODER + "label_embs_concat"][0][0]
    assert config["decoder_embed_dim"] == llama_config(GOLDEN / "avsp" / "llm_gqa").hidden_size
    with pytest.raises(InputError, match="hf is not empty: give another --hf"):
        to_reference.export(workdir, encoder=encoder, hf=tmp_path / "hf")


def test_without_encoder_or_its_pretraining(best, config, workdir, encoder, tmp_path, capsys):
    to_reference.export(workdir, fairseq=tmp_path / "bare.pt")
    assert "note: without --encoder" in capsys.readouterr().out
    bare = torch.load(tmp_path / "bare.pt", weights_only=True)
    there = read_fairseq(best).model
    assert equal(bare["model"], {n: t for n, t in there.items() if not n.startswith(REFERENCE_ENCODER)})
    assert bare["last_optimizer_state"] is None
    from_reference.convert(tmp_path / "bare.pt", load_experiment(config), tmp_path / "again")
    assert "it holds no optimizer state; Adam starts with zero moments" in capsys.readouterr().out
    plain = tmp_path / "encoder"
    plain.mkdir()
    for path in encoder.iterdir():
        if path.name != PRETRAINING_FILE:
            (plain / path.name).write_bytes(path.read_bytes())
    settings = json.loads((plain / "config.json").read_text()) | {"waveform": "float"}
    (plain / "config.json").write_text(json.dumps(settings))
    to_reference.export(workdir, encoder=plain, fairseq=tmp_path / "some.pt")
    said = capsys.readouterr().out
    assert "mask_emb and label_embs_concat are left out" in said and "this encoder hears floats" in said
    some = torch.load(tmp_path / "some.pt", weights_only=True)
    left_out = {REFERENCE_ENCODER + "mask_emb", REFERENCE_ENCODER + "label_embs_concat"}
    assert there.keys() - some["model"].keys() == left_out
    # The reference's model has them all the same, and its optimizer counts them.
    there = as_pytorch_reads(best)["last_optimizer_state"]
    assert list(some["last_optimizer_state"]["state"]) == list(there["state"])


def test_what_does_not_fit_is_one_clear_error(config, workdir, encoder, tmp_path):
    with pytest.raises(InputError, match="nothing to write"):
        to_reference.export(workdir)
    with pytest.raises(InputError, match="--hf needs --encoder"):
        to_reference.export(workdir, hf=tmp_path / "hf")
    with pytest.raises(InputError, match="holds no checkpoints: train first"):
        to_reference.export(tmp_path / "none", fairseq=tmp_path / "x.pt")
    with pytest.raises(InputError, match="no such file, expected the config of an AV-HuBERT encoder"):
        to_reference.export(workdir, encoder=tmp_path, fairseq=tmp_path / "x.pt")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in encoder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(encoder / "model.safetensors")
    for change, message in (
        ({"layer_norm.weight": None, "layer_norm.bias": None}, "missing: layer_norm.bias, layer_norm.weight"),
        ({"other": torch.zeros(1)}, "unknown: other"),
        ({"layer_norm.weight": torch.zeros(3)}, r"layer_norm.weight is \[3\], its config wants \[128\]"),
    ):
        changed = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
        save_file(changed, broken / "model.safetensors")
        with pytest.raises(InputError, match=f"broken/model.safetensors.*{message}"):
            to_reference.export(workdir, encoder=broken, fairseq=tmp_path / "x.pt")
    (broken / "model.safetensors").write_bytes(b"text")
    with pytest.raises(InputError, match="is not a safetensors file, or damaged"):
        to_reference.export(workdir, encoder=broken, fairseq=tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists() and not (tmp_path / "hf").exists()
