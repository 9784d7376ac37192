"""AV-HuBERT in PyTorch against outputs recorded from the reference (tests/golden/README.md)."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from convert.from_fairseq import convert
from viavsp_jax.errors import InputError
from viavsp_jax.models.avhubert_config import AVHubertConfig
from viavsp_jax.prepare.avhubert_torch import UNUSED_KEYS, AVHubert, load_encoder, save_encoder

GOLDEN = Path(__file__).parent / "golden"
WHOLE_MODEL = dict(atol=1e-4, rtol=0)
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


@pytest.fixture(scope="module")
def runs(model, variant):
    """For each utterance: the recorded arrays, both features and the activations of the audio-video run."""
    result = []
    for path in sorted((GOLDEN / "avhubert").glob(f"{variant}_utt*.npz")):
        media = np.load(GOLDEN / "media" / path.name.replace(variant + "_", ""))
        activations, hooks = {}, []
        for name, module in hooked_modules(model).items():
            hooks.append(module.register_forward_hook(_recorder(activations, name)))
        with torch.no_grad():
            video = model.video_features(torch.from_numpy(media["video_transformed"])[None])
            audio = model.audio_features(torch.from_numpy(media["audio_norm"])[None])
            model.encode(audio, video)
        for hook in hooks:
            hook.remove()
        result.append((np.load(path), audio, video, activations))
    assert len(result) >= 2
    return result


def _recorder(activations, name):
    def record(_module, inputs, output):
        activations[name + "_in"] = inputs[0].numpy()
        activations[name] = output.numpy()

    return record


def hooked_modules(model):
    resnet = model.feature_extractor_video.resnet
    modules = {
        "frontend3D": resnet.frontend3D,
        "resnet": resnet,
        "fe_video": model.feature_extractor_video,
        "fe_audio": model.feature_extractor_audio,
        "fused_ln": model.layer_norm,
        "pos_conv": model.encoder.pos_conv,
        "layer0": model.encoder.layers[0],
        "attn": model.encoder.layers[0].self_attn,
    }
    modules |= {f"trunk_layer{i}": getattr(resnet.trunk, f"layer{i}") for i in (1, 2, 3, 4)}
    if model.post_extract_proj is not None:
        modules["post_extract_proj"] = model.post_extract_proj
    return modules


def recorded_layouts(activations):
    """Our activations, by the recorded names and in the recorded layouts."""
    time_last, time_first = (0, 2, 1), (1, 0, 2)
    layouts = {
        "resnet": activations["resnet"].transpose(time_last),
        "fe_video": activations["fe_video"].transpose(time_last),
        "fe_audio": activations["fe_audio"].transpose(time_last),
        "fused_ln": activations["fused_ln"],
        "pos_conv": activations["pos_conv"],
        "encoder_layer_input": activations["layer0_in"].transpose(time_first),
        "layer0_attn_in": activations["attn_in"].transpose(time_first),
        "layer0_attn_out": activations["attn"].transpose(time_first),
        "frontend3D_first2frames": activations["frontend3D"][:, :, :2],
    }
    layouts |= {f"trunk_layer{i}_spatialmean": activations[f"trunk_layer{i}"].mean((2, 3)) for i in (1, 2, 3, 4)}
    if "post_extract_proj" in activations:
        layouts["post_extract_proj"] = activations["post_extract_proj"]
    return layouts


def test_activations_equal_the_recorded_ones(runs):
    for recorded, _, _, activations in runs:
        ours = recorded_layouts(activations)
        names = [name for name in recorded.files if name.startswith("act_av_")]
        assert names
        for name in names:
            # The frontend's values reach 15: there the tolerance counts in units of the largest one.
            scale = max(1, np.abs(recorded[name]).max())
            output, expected = ours[name.removeprefix("act_av_")] / scale, recorded[name] / scale
            np.testing.assert_allclose(output, expected, **SINGLE_MODULE, err_msg=name)


def test_every_layer_and_the_final_output_from_one_pass(model, runs):
    for recorded, audio, video, _ in runs:
        layers = sorted(
            int(name.removeprefix("dump_layer")) for name in recorded.files if name.startswith("dump_layer")
        )
        assert layers == list(range(model.config.num_layers + 1))
        for layer in layers:
            with torch.no_grad():
                output, final = model.encode(audio, video, layer=layer)
            np.testing.assert_allclose(output[0], recorded[f"dump_layer{layer}"], **WHOLE_MODEL)
            np.testing.assert_allclose(final[0], recorded["extract_features_final"], **WHOLE_MODEL)


def test_each_combination_of_modalities(model, runs):
    for recorded, audio, video, _ in runs:
        for name, inputs in {"av": (audio, video), "v": (None, video), "a": (audio, None)}.items():
            with torch.no_grad():
                layer_output, final = model.encode(*inputs)
            assert layer_output is None
            np.testing.assert_allclose(final[0], recorded[f"finetune_{name}"], **WHOLE_MODEL)


@pytest.fixture(scope="module")
def batch(model, variant):
    recorded = np.load(GOLDEN / "avhubert" / f"{variant}_batch.npz")
    mask = recorded["padding_mask"]
    media = [np.load(path) for path in sorted((GOLDEN / "media").glob("utt*.npz"))]
    assert [len(one["frames"]) for one in media] == list((~mask).sum(1))

    def padded(name):
        arrays = [one[name] for one in media]
        return torch.from_numpy(
            np.stack([np.pad(a, [(0, mask.shape[1] - len(a))] + [(0, 0)] * (a.ndim - 1)) for a in arrays])
        )

    with torch.no_grad():
        audio = model.audio_features(padded("audio_norm"))
        video = model.video_features(padded("video_transformed"))
    return recorded, audio, video, torch.from_numpy(mask)


def test_padded_batch_equals_the_recorded_one_and_the_single_runs(model, batch, runs):
    recorded, audio, video, mask = batch
    with torch.no_grad():
        for name, inputs in {"av": (audio, video), "v": (None, video), "a": (audio, None)}.items():
            final = model.encode(*inputs, padding_mask=mask)[1]
            np.testing.assert_allclose(final, recorded[f"finetune_{name}"], **WHOLE_MODEL)
        for layer in range(model.config.num_layers + 1):
            output, final = model.encode(audio, video, mask, layer)
            name = f"layer{layer}" if layer else "conv_ret_with_mask"
            np.testing.assert_allclose(output, recorded[name], **WHOLE_MODEL)
            for row, (_, one_audio, one_video, _) in enumerate(runs):
                alone, alone_final = model.encode(one_audio, one_video, layer=layer)
                frames = alone.shape[1]
                np.testing.assert_allclose(output[row, :frames], alone[0], **SINGLE_MODULE)
                np.testing.assert_allclose(final[row, :frames], alone_final[0], **SINGLE_MODULE)


def test_config_comes_from_the_checkpoint(model, variant):
    settings = json.loads((GOLDEN / "avhubert" / f"{variant}_tiny.cfg.json").read_text())["model"]
    assert model.config.layer_norm_first == settings["layer_norm_first"]
    assert model.config.modality_fuse == settings["modality_fuse"]
    assert model.config.embed_dim == settings["encoder_embed_dim"]
    assert not model.training


@pytest.mark.parametrize("size", ["large", "base"])
def test_names_and_shapes_equal_fairseqs_at_real_size(size):
    published = json.loads((GOLDEN / "keys" / f"avhubert_{size}_fairseq.json").read_text())
    settings = published["model_cfg"]
    config = AVHubertConfig(
        embed_dim=settings["encoder_embed_dim"],
        num_layers=settings["encoder_layers"],
        num_heads=settings["encoder_attention_heads"],
        ffn_dim=settings["encoder_ffn_embed_dim"],
    )
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in AVHubert(config).state_dict().items()}
    theirs = {name: shape_and_dtype[0] for name, shape_and_dtype in published["keys"].items()}
    assert {name for name in theirs if name not in ours} == set(UNUSED_KEYS)
    assert ours == {name: shape for name, shape in theirs.items() if name in ours}


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
    safetensors.torch.save_file(weights, path)
    with pytest.raises(InputError) as caught:
        load_encoder(tmp_path)
    for part in (
        str(path),
        "missing layer_norm.weight",
        "missing encoder.layers.1.fc1.bias",
        "unknown surplus.weight",
        "layer_norm.bias has shape [3], not [64]",
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
        with pytest.raises(InputError, match=f"layer {layer}"):
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
    with pytest.raises(InputError, match=message):
        AVHubertConfig(**fields)


def test_config_json(tmp_path):
    path = tmp_path / "config.json"
    NARROW.to_json(path)
    assert AVHubertConfig.from_json(path) == NARROW
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "conv_pos"} | {"depth": 1}))
    with pytest.raises(InputError, match=r"config.json: .*missing \['conv_pos'\], unknown \['depth'\]"):
        AVHubertConfig.from_json(path)
    path.write_text(json.dumps(values | {"num_heads": 5}))
    with pytest.raises(InputError, match="config.json: .*multiple of num_heads 5"):
        AVHubertConfig.from_json(path)
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(InputError, match="config.json: "):
            AVHubertConfig.from_json(path)
