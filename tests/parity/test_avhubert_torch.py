"""AV-HuBERT in PyTorch against outputs recorded from the reference (tests/golden/README.md)."""

import json
import lzma

import numpy as np
import pytest
import safetensors.torch
import torch
from places import GOLDEN

from convert.from_fairseq import convert
from viavsp_jax import encoder_folder
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.avhubert_torch import AVHubert, load_encoder, save_encoder
from viavsp_jax.runtime.errors import InputError

SINGLE_MODULE = dict(atol=1e-5, rtol=0)
NARROW = AVHubertConfig(
    embed_dim=32,
    num_layers=2,
    num_heads=2,
    ffn_dim=48,
    frontend_channels=4,
    resnet_channels=(4, 6, 8, 12),
    conv_pos=7,
    conv_pos_groups=4,
)


@pytest.fixture(scope="module", params=["large", "postln_add"])
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def model(variant, tmp_path_factory):
    folder = tmp_path_factory.mktemp(variant)
    checkpoint = folder / "checkpoint.pt"
    checkpoint.write_bytes(lzma.decompress((GOLDEN / "avhubert" / f"{variant}_tiny.pt.xz").read_bytes()))
    convert(checkpoint, folder / "encoder")
    return load_encoder(folder / "encoder")


def test_config_comes_from_the_checkpoint(model, variant):
    settings = json.loads((GOLDEN / "avhubert" / f"{variant}_tiny.cfg.json").read_text())["model"]
    assert model.config.layer_norm_first == settings["layer_norm_first"]
    assert model.config.modality_fuse == settings["modality_fuse"]
    assert model.config.embed_dim == settings["encoder_embed_dim"]
    assert not model.training


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(0)
    return AVHubert(NARROW).eval()


def narrow_inputs(frames=5):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, frames, NARROW.audio_dim, generator=generator),
        torch.randn(2, frames, 88, 88, generator=generator),
    )


def final_output(model, audio, video):
    return model.encode(model.audio_features(audio), model.video_features(video))[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.1)])
def test_half_precision_is_near_float32(narrow, tmp_path, dtype, tolerance):
    save_encoder(narrow, tmp_path, dtype)
    half = load_encoder(tmp_path, dtype)
    with torch.no_grad():
        expected = final_output(narrow, *narrow_inputs())
        output = final_output(half, *narrow_inputs())
    assert output.dtype == dtype
    np.testing.assert_allclose(output.float(), expected, atol=tolerance, rtol=0)


def test_saved_float32_encoder_is_the_same_encoder(narrow, tmp_path):
    save_encoder(narrow, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.config == narrow.config
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_training_mode_gives_every_parameter_a_gradient(narrow):
    model = AVHubert(NARROW)
    model.load_state_dict(narrow.state_dict())
    model.train()
    final_output(model, *narrow_inputs()).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # The outputs of a LayerNorm do not change with the offset of all keys.
        assert parameter.grad.abs().max() > 0 or name.endswith("k_proj.bias"), name
    before = narrow.state_dict()["feature_extractor_video.resnet.frontend3D.1.running_mean"]
    assert not torch.equal(model.feature_extractor_video.resnet.frontend3D[1].running_mean, before)


def test_positional_convolution_starts_unscaled(narrow):
    convolution = narrow.encoder.pos_conv[0]
    x = torch.randn(1, NARROW.embed_dim, 9)
    expected = torch.nn.functional.conv1d(
        x, convolution.weight_v, convolution.bias, padding=NARROW.conv_pos // 2, groups=NARROW.conv_pos_groups
    )
    np.testing.assert_allclose(convolution(x).detach(), expected.detach(), **SINGLE_MODULE)


def test_wrong_weights_are_all_listed(narrow, tmp_path):
    save_encoder(narrow, tmp_path)
    path = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights["layer_norm.weight"], weights["encoder.layers.1.fc1.bias"]
    weights["surplus.weight"] = torch.zeros(1)
    weights["layer_norm.bias"] = torch.zeros(3)
    weights["post_extract_proj.bias"][2] = torch.nan
    safetensors.torch.save_file(weights, path)
    with pytest.raises(InputError) as caught:
        load_encoder(tmp_path)
    for part in (
        str(path),
        "missing layer_norm.weight",
        "missing encoder.layers.1.fc1.bias",
        "unknown surplus.weight",
        "layer_norm.bias has shape [3], not [64]",
        "post_extract_proj.bias is not finite",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x10\0\0\0\0\0\0\0 not a header   "])
def test_damaged_weights_are_refused(narrow, tmp_path, content):
    save_encoder(narrow, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_encoder(tmp_path)


def test_missing_files_are_named(narrow, tmp_path):
    with pytest.raises(InputError, match="config.json: no such file"):
        load_encoder(tmp_path / "nowhere")
    save_encoder(narrow, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors: no such file"):
        load_encoder(tmp_path)


def test_weight_too_large_for_float16_is_refused(narrow, tmp_path):
    model = AVHubert(NARROW)
    with torch.no_grad():
        model.layer_norm.weight[0] = 1e6
    with pytest.raises(InputError, match="layer_norm.weight is not finite as torch.float16"):
        save_encoder(model, tmp_path, torch.float16)


def test_layer_out_of_range_and_no_modality(narrow):
    features = torch.zeros(1, 3, NARROW.embed_dim)
    for layer in (-1, NARROW.num_layers + 1):
        with pytest.raises(ValueError, match=f"layer {layer}"):
            narrow.encode(features, None, layer=layer)
    with pytest.raises(ValueError, match="audio, video or both"):
        narrow.encode(None, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 0}, "embed_dim must be a positive integer, not 0"),
        ({"num_layers": 2.0}, "num_layers must be a positive integer"),
        ({"num_heads": True}, "num_heads must be a positive integer"),
        ({"num_heads": 12}, "embed_dim 1024 must be a multiple of num_heads 12"),
        ({"conv_pos_groups": 3}, "multiple of conv_pos_groups 3"),
        ({"modality_fuse": "sum"}, "modality_fuse must be in"),
        ({"layer_norm_first": "yes"}, "layer_norm_first must be true or false"),
        ({"resnet_channels": (64, 128)}, "resnet_channels must give 4 stages"),
        ({"resnet_channels": (64, 128, -1, 4)}, "resnet_channels.2. must be a positive integer"),
        ({"resnet_channels": 64}, "resnet_channels must be a list"),
    ],
)
def test_config_refuses_unusable_values(fields, message):
    with pytest.raises(ValueError, match=message):
        AVHubertConfig(**fields)


def test_config_json(tmp_path):
    path = tmp_path / "config.json"
    encoder_folder.write_config(NARROW, tmp_path)
    assert encoder_folder.read_config(tmp_path) == NARROW
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "conv_pos"} | {"depth": 1}))
    with pytest.raises(InputError, match=r"config.json: .*missing \['conv_pos'\], unknown \['depth'\]"):
        encoder_folder.read_config(tmp_path)
    path.write_text(json.dumps(values | {"num_heads": 5}))
    with pytest.raises(InputError, match="config.json: .*multiple of num_heads 5"):
        encoder_folder.read_config(tmp_path)
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(InputError, match="config.json: "):
            encoder_folder.read_config(tmp_path)
