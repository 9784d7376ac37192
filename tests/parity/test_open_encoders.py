"""The way back to AVHubertModel: its names, shapes and settings as they were recorded."""

import json
import lzma
import shutil

import pytest
import safetensors.torch
import torch
from places import GOLDEN_OPEN
from safetensors.torch import load_file
from transformers import Wav2Vec2Config

from convert import from_avhubert, to_avhubert
from convert.pretrained import PRETRAINING_FILE
from viavsp_jax import encoder_folder

RECORDED = GOLDEN_OPEN / "hf_avhubert" / "encoder_large_tiny"
# Of decoders, or without effect.
NOT_READ = {
    "activation_function", "d_model", "encoder_attention_heads", "encoder_ffn_dim", "encoder_layerdrop",
    "encoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "decoder_layerdrop", "decoder_layers",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The recorded folder, the encoder folder made of it, and that written back."""
    hf, encoder, back = (tmp_path_factory.mktemp(name) for name in ("hf", "encoder", "back"))
    shutil.copy(RECORDED / "config.json", hf)
    (hf / "model.safetensors").write_bytes(lzma.decompress((RECORDED / "model.safetensors.xz").read_bytes()))
    from_avhubert.convert(hf, encoder)
    to_avhubert.convert(encoder, back)
    return hf, encoder, back


def test_weights_there_and_back_are_the_same_bits(folders):
    hf, _, back = folders
    recorded, found = (safetensors.torch.load((folder / "model.safetensors").read_bytes()) for folder in (hf, back))
    assert found.keys() == recorded.keys()
    for name, value in recorded.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_settings_are_all_that_the_class_reads(folders):
    recorded, found = (json.loads((folder / "config.json").read_text()) for folder in (folders[0], folders[2]))
    plain = Wav2Vec2Config().to_dict()
    read = {name for name, value in recorded.items() if plain.get(name, "absent") != value}
    read -= NOT_READ | {"transformers_version", "activation_dropout"}
    assert {name: found.get(name, "absent") for name in read} == {name: recorded[name] for name in read}


def test_what_is_absent_is_said(folders, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folders[1] / name, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"waveform": "int16"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    to_avhubert.main([str(tmp_path), "--output", str(tmp_path / "back")])
    said = capsys.readouterr().out
    assert f"note: mask_emb and label_embs_concat are left out, since they are not in {tmp_path}" in said
    assert "note: the encoder hears int16 samples" in said
    absent = load_file(folders[0] / "model.safetensors").keys() - load_file(tmp_path / "back/model.safetensors").keys()
    assert absent == {"mask_emb", "label_embs_concat"}
    from_avhubert.convert(tmp_path / "back", tmp_path / "again")
    assert encoder_folder.read_config(tmp_path / "again") == encoder_folder.read_config(folders[1])
    assert load_file(tmp_path / "again" / PRETRAINING_FILE) == {}
