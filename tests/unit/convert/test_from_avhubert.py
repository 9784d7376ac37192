"""Encoders in every form that people have become the same encoder folder, or are refused by one sentence."""

import json
import os

import hf_encoders
import pytest
import torch
from hf_encoders import MISLEADING, fairseq_weights, settings, theirs, write
from hostile_pickles import Call
from random_encoders import POST_LN, PRE_LN
from safetensors.torch import load_file
from tiny_llama import write_llama

from convert import from_avhubert, from_fairseq, to_avhubert
from convert.pretrained import PRETRAINING_FILE
from viavsp_jax import encoder_folder
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.runtime.errors import InputError

WEIGHTS = fairseq_weights()
HERE = theirs(WEIGHTS)
NEWER = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
OLDER = "encoder.pos_conv_embed.conv.weight_"


@pytest.fixture
def hf(tmp_path):
    return tmp_path / "hf"


def converted(source, **options):
    """Config and all weights of what a source becomes."""
    output = source.parent / "encoder"
    from_avhubert.convert(source, output, **options)
    weights = load_file(output / "model.safetensors") | load_file(output / PRETRAINING_FILE)
    return encoder_folder.read_config(output), weights


def same(found, expected, dtype=torch.float32):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        wanted = value.to(dtype).float() if value.is_floating_point() else value
        assert torch.equal(found[name], wanted) and found[name].dtype == wanted.dtype, name


def spelled_older(weights):
    return {name.replace(f"{NEWER}0", f"{OLDER}g").replace(f"{NEWER}1", f"{OLDER}v"): x for name, x in weights.items()}


@pytest.mark.parametrize(
    "prefix", ["", "avhubert.", "avsr.encoder.", "model.encoder.", "encoder.", "encoder.encoder.", "a.b.c.d."]
)
def test_under_any_prefix_with_names_of_other_models_around(hf, capsys, prefix):
    """Some of them end as the encoder's do."""
    foreign = {
        "decoder.layers.0.layer_norm.weight": 1, "decoder.encoder.layer_norm.weight": 2, "lm_head.weight": 3,
        "decoder.layers.0.feed_forward.intermediate_dense.bias": 4, "ctc.final_proj.weight": 5,
    }  # fmt: skip
    write(hf, theirs(WEIGHTS, prefix) | {name: torch.full((2,), float(x)) for name, x in foreign.items()})
    config, found = converted(hf)
    same(found, WEIGHTS)
    fields = {name: getattr(config, name) for name in ("embed_dim", "num_heads", "resnet_channels", "conv_pos_groups")}
    assert fields == {name: getattr(PRE_LN, name) for name in fields} and config.waveform == "float"
    said = capsys.readouterr().out
    assert "left out what is not the encoder's: ctc (1), decoder (3), lm_head (1)\n" in said
    assert (f"under {prefix!r}" in said) == bool(prefix)


def test_both_spellings_of_the_weight_norm(hf):
    for weights in (HERE, spelled_older(HERE)):
        same(converted(write(hf, weights))[1], WEIGHTS)


@pytest.mark.parametrize("config", [PRE_LN, POST_LN], ids=["pre-LN, concat", "post-LN, add"])
def test_the_older_form_keeps_names_and_settings_of_fairseq(hf, config):
    weights = fairseq_weights(config)
    given = {theirs: getattr(config, ours) for ours, theirs in from_fairseq.CONFIG_NAMES.items()}
    found, values = converted(write(hf, {f"encoder.w2v_model.{name}": x for name, x in weights.items()}, given))
    assert found == config and found.waveform == "int16"
    same(values, weights)
    with pytest.raises(InputError, match=r"config.json: .*its settings lack \['layer_norm_first'\]"):
        converted(write(hf, weights, {name: x for name, x in given.items() if name != "layer_norm_first"}))


def test_modalities_that_are_added(hf):
    added = AVHubertConfig(**vars(PRE_LN) | {"modality_fuse": "add"})
    weights = fairseq_weights(added)
    config, found = converted(write(hf, theirs(weights), settings(added)))
    assert config.modality_fuse == "add" and config.layer_norm_first
    same(found, weights)
    with pytest.raises(InputError, match="config.json: modality_fuse is 'concat', the weights have add"):
        converted(write(hf, theirs(weights)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_other_dtypes(hf, name, dtype):
    weights = {name: x.to(dtype) if x.is_floating_point() else x for name, x in HERE.items()}
    same(converted(write(hf, weights, name=name))[1], WEIGHTS, dtype)


def in_two_files(folder, kind):
    """With an index, as transformers writes it."""
    names = sorted(HERE)
    where = {name: f"part-{1 + (number > 40)}.{kind}" for number, name in enumerate(names)}
    for file in sorted(set(where.values())):
        write(folder, {name: HERE[name] for name in names if where[name] == file}, name=file)
    whole = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    (folder / f"{whole}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_several_files(hf, kind, capsys):
    in_two_files(hf, kind)
    same(converted(hf)[1], WEIGHTS)
    assert "read 2 files: " in capsys.readouterr().out
    (hf / f"part-2.{kind}").unlink()
    with pytest.raises(InputError, match=f"lacks files that its index names: part-2.{kind}"):
        converted(hf)


def test_a_file_with_its_config_beside_it(hf):
    write(hf, HERE, name="mine.safetensors")
    write(hf, HERE, name="mine.pth")
    for name in ("mine.safetensors", "mine.pth"):
        same(converted(hf / name)[1], WEIGHTS)
    with pytest.raises(InputError, match="hf holds no model.safetensors .* to convert mine.pth, give that file"):
        converted(hf)


def test_of_both_kinds_of_files_the_one_is_read_that_transformers_reads(hf, capsys):
    write(hf, {name: x + 1 for name, x in HERE.items()}, name="pytorch_model.bin")
    write(hf, HERE)
    same(converted(hf)[1], WEIGHTS)
    assert "read model.safetensors: " in capsys.readouterr().out


def test_settings_by_the_names_of_muavic(hf):
    names = {"hidden_size": None, "num_attention_heads": None, "modality": None, "encoder_attention_heads": 2}
    for width in ({"encoder_hidden_size": 24, "d_model": 99}, {"d_model": 24}):
        config, found = converted(write(hf, theirs(WEIGHTS, "model.encoder."), settings(**names | width)))
        assert config.num_heads == 2
        same(found, WEIGHTS)
    with pytest.raises(InputError, match="config.json: encoder_hidden_size is 25, the weights have 24"):
        converted(write(hf, HERE, settings(hidden_size=None, encoder_hidden_size=25)))


@pytest.mark.parametrize("changes, message", [
    ({"hidden_size": 48}, "hidden_size is 48, the weights have 24"),
    ({"encoder_embed_dim": 48}, "encoder_embed_dim is 48, the weights have 24"),
    ({"num_hidden_layers": 4}, "num_hidden_layers is 4, the weights have 3"),
    ({"intermediate_size": 21}, "intermediate_size is 21, the weights have 20"),
    ({"num_conv_pos_embeddings": 128}, "num_conv_pos_embeddings is 128, the weights have 6"),
    ({"num_conv_pos_embedding_groups": 16}, "num_conv_pos_embedding_groups is 16, the weights have 4"),
    ({"audio_feat_dim": 104}, "audio_feat_dim is 104, the weights have 12"),
    ({"modality_fuse": "add"}, "modality_fuse is 'add', the weights have concat"),
    ({"num_attention_heads": 5}, "num_attention_heads is 5, expected a divisor of the width 24"),
    ({"num_attention_heads": None, "encoder_attention_heads": None}, "it lacks num_attention_heads"),
    ({"num_attention_heads": True}, "num_attention_heads is True, expected a divisor of the width 24"),
    ({"resnet_relu_type": "relu"}, "resnet_relu_type is 'relu', only 'prelu' is supported"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu', only 'gelu' is supported"),
    ({"feat_extract_activation": "gelu_new"}, "feat_extract_activation is 'gelu_new', only 'gelu' is supported"),
    ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12, only 1e-05 is supported"),
    ({"masking_type": "feature"}, r"mask_emb of the weights is \[12\], by its settings \[24\]"),
    ({"num_classes": 10}, r"label_embs_concat of the weights is \[9, 5\], by its settings \[10, 5\]"),
])  # fmt: skip
def test_settings_that_the_weights_do_not_have(hf, changes, message):
    write(hf, HERE, settings(**changes))
    with pytest.raises(InputError, match=f"config.json: {message}$"):
        converted(hf)
    assert not (hf.parent / "encoder").exists()


def test_all_that_disagrees_is_named_at_once_and_what_misleads_is_not_read(hf):
    with pytest.raises(InputError, match="hidden_size is 1, .*; num_hidden_layers is 2, .*; hidden_act is 'silu'"):
        converted(write(hf, HERE, settings(hidden_size=1, num_hidden_layers=2, hidden_act="silu")))
    plain = settings(**dict.fromkeys(MISLEADING))
    assert converted(write(hf, HERE, plain))[0] == converted(write(hf, HERE))[0]


def test_what_is_chosen_is_said(hf, capsys):
    write(hf, HERE, settings(modality="audio"))
    from_avhubert.main([str(hf), "--output", str(hf.parent / "out")])
    said = capsys.readouterr().out
    assert "audio features of float samples; --waveform changes that" in said and "says modality 'audio'" in said
    options = ["--waveform", "int16", "--layers", "2", "--dtype", "float16"]
    from_avhubert.main([str(hf), "--output", str(hf.parent / "out"), *options])
    assert "audio features of int16 samples" in capsys.readouterr().out
    config = encoder_folder.read_config(hf.parent / "out")
    assert (config.waveform, config.num_layers, config.final_norm) == ("int16", 2, False)
    weights = load_file(hf.parent / "out" / "model.safetensors")
    assert weights["encoder.layers.1.fc1.weight"].dtype == torch.float16 and "encoder.layers.2.fc1.bias" not in weights


def lacking(weights, *names):
    return {name: x for name, x in weights.items() if name not in names}


def changed(name, value):
    return HERE | {name: value}


@pytest.mark.parametrize("weights, message", [
    (lacking(HERE, "layer_norm.bias"), "hf: the encoder under no prefix lacks weights, by fairseq's names: layer_norm"),
    (lacking(HERE, f"{NEWER}1"), "lacks weights, by fairseq's names: encoder.pos_conv.0.weight_v"),
    ({name: x for name, x in HERE.items() if ".layers.1." not in name}, "lacks .*: encoder.layers.1.fc1.bias, "),
    ({name: x for name, x in theirs(WEIGHTS, "avsr.encoder.").items() if "layer4" not in name},
     "the encoder under avsr.encoder. lacks weights, by fairseq's names: feature_extractor_video.resnet.trunk.layer4"),
    (theirs(WEIGHTS, "student.") | theirs(WEIGHTS, "teacher."),
     r"holds 2 encoders, under student. \(names of AVHubertModel\) and teacher. \(names of AVHubertModel\): expected"),
    (HERE | WEIGHTS, r"2 encoders, under no prefix \(names of AVHubertModel\) and no prefix \(names of fairseq\)"),
    (HERE | {f"{OLDER}g": torch.ones(1, 1, 6)}, r"hf holds encoder.pos_conv_embed.* and encoder.pos_conv_embed.*, ex"),
    (changed("encoder.layers.0.adapter.weight", torch.ones(2)), "has weights that are not AV-HuBERT's: encoder.layers"),
    (changed("layer_norm.bias", torch.full((48,), torch.nan)), "hf: .*layer_norm.bias is not finite"),
    (changed("mask_emb", torch.full((12,), torch.inf)), "hf: mask_emb is not finite"),
    (changed("encoder.layers.0.feed_forward.output_dense.weight", torch.ones(24, 20, dtype=torch.int8)),
     "encoder.layers.0.feed_forward.output_dense.weight is int8, expected float32, float16 or bfloat16"),
    (changed("layer_norm.bias", torch.zeros(47)), r"hf: .*layer_norm.bias has shape \[47\], not \[48\]"),
    (changed("encoder.layers.0.feed_forward.intermediate_dense.weight", torch.zeros([])), "other axes than AV-HuBERT"),
    ({"x": torch.ones(1)}, "holds no AV-HuBERT encoder under any prefix"),
])  # fmt: skip
def test_weights_that_are_not_those_of_one_encoder(hf, weights, message):
    write(hf, weights)
    with pytest.raises(InputError, match=message) as caught:
        converted(hf)
    assert "\n" not in str(caught.value) and not (hf.parent / "encoder").exists()


def test_values_that_are_not_finite_in_a_pickle(hf):
    write(hf, changed("layer_norm.bias", torch.full((48,), torch.nan)), name="pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin: layer_norm.bias holds values that are not finite"):
        converted(hf)


def test_a_language_model_is_no_encoder(hf):
    hf.mkdir()
    write_llama(hf)
    with pytest.raises(InputError, match="hf holds no AV-HuBERT encoder under any prefix"):
        converted(hf)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_files(hf, name):
    whole = (write(hf, HERE, name=name) / name).read_bytes()
    for content in (b"", b"text", whole[:9], whole[: len(whole) // 2], whole[:-1]):
        (hf / name).write_bytes(content)
        with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
            converted(hf)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content, message", [
    (None, "no such file, expected the config of an AV-HuBERT encoder beside its weights"),
    (b"{", "not a JSON file"), (b"[" * 99_999, "not a JSON file"), (b"\xff", "not a JSON file"),
    (b"[1]", "expected a JSON object"), (b"{}", "it lacks num_attention_heads"),
])  # fmt: skip
def test_bad_configs(hf, content, message):
    path = write(hf, HERE) / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"config.json: {message}"):
        converted(hf)


def test_a_pickle_runs_nothing(hf):
    marker = hf.parent / "marker"
    write(hf, HERE | {"layer_norm.bias": Call(os.system, f"touch {marker}")}, name="pytorch_model.bin")
    for source in (hf, hf / "pytorch_model.bin"):
        with pytest.raises(InputError, match="names posix.system, which is not on the allow-list"):
            converted(source)
    write(hf, [1], name="pytorch_model.bin")
    with pytest.raises(InputError, match="not the weights of a model, expected a dict of tensors by name"):
        converted(hf)
    write(hf, HERE | {"note": "text"}, name="pytorch_model.bin")
    with pytest.raises(InputError, match="not a readable file of PyTorch weights .it holds something that is not a"):
        converted(hf)
    assert not marker.exists()


def test_places_that_do_not_do(hf):
    with pytest.raises(InputError, match="hf: no such file or folder, expected an AV-HuBERT encoder"):
        converted(hf)
    write(hf, HERE)
    with pytest.raises(InputError, match="hf is the source itself: give another --output"):
        from_avhubert.convert(hf, hf)
    with pytest.raises(InputError, match="hf/config.json: not the config of an AV-HuBERT encoder"):
        to_avhubert.convert(hf, hf.parent / "back")


def test_encoders_that_avhubertmodel_does_not_have(hf):
    write(hf, HERE)
    from_avhubert.convert(hf, hf.parent / "small")
    with pytest.raises(InputError, match="small: the encoder's frontend_channels is 3, AVHubertModel has 64 only"):
        to_avhubert.convert(hf.parent / "small", hf.parent / "back")
    from_avhubert.convert(hf, hf.parent / "cut", layers=1)
    with pytest.raises(InputError, match="cut holds a part of the blocks, expected all of them"):
        to_avhubert.convert(hf.parent / "cut", hf.parent / "back")
    assert not (hf.parent / "back").exists()


def test_the_tests_own_table_is_the_recorded_one():
    assert "encoder.layers.2.attention.q_proj.bias" in hf_encoders.TABLE.values()
    assert len(HERE) == len(WEIGHTS) and f"{NEWER}1" in HERE


def test_what_an_encoder_hears_is_in_its_folder(hf):
    """Those of earlier versions do not say."""
    assert converted(write(hf, HERE))[0].waveform == "float"
    path = hf.parent / "encoder" / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("waveform") == "float"
    path.write_text(json.dumps(values))
    assert encoder_folder.read_config(path.parent).waveform == "int16"
    path.write_text(json.dumps(values | {"waveform": "int8"}))
    with pytest.raises(InputError, match="config.json: .*waveform must be in .'int16', 'float'., not 'int8'"):
        encoder_folder.read_config(path.parent)
