"""AV-HuBERT in Flax against outputs recorded from the reference (tests/golden/README.md) and the PyTorch encoder."""

import dataclasses
import functools
import json
import lzma

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from places import GOLDEN
from random_encoders import POST_LN, PRE_LN, random_torch_encoder

from convert.avhubert import abstract_params, load_flax, tensors, to_torch_names
from convert.from_fairseq import convert
from convert.to_reference import read_encoder
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.models.avhubert.encoder import AVHubert
from viavsp_jax.prepare.features import avhubert_torch
from viavsp_jax.runtime.errors import InputError

WHOLE_MODEL = dict(atol=1e-4, rtol=0)
SINGLE_MODULE = dict(atol=1e-5, rtol=0)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A converted encoder: its structure, and its weights as jitted functions take them."""

    config: AVHubertConfig
    graph: nnx.GraphDef
    params: dict

    @classmethod
    def load(cls, folder, dtype=jnp.float32):
        config, params = load_flax(folder)
        graph = nnx.graphdef(nnx.eval_shape(lambda: AVHubert(config, dtype=dtype, rngs=nnx.Rngs(0))))
        return cls(config, graph, jax.tree.map(jnp.asarray, params))

    def encode(self, audio, video, mask=None, layer=None):
        """Of filterbank values and frames: the kept layer and the last one."""
        seen = None if video is None else self.see(video)
        return encode(self.graph, self.params, audio, seen, mask, layer=layer)

    def see(self, video):
        return run_video(self.graph, self.params, video)


@functools.partial(jax.jit, static_argnums=0)
def run_video(graph, params, video):
    return nnx.merge(graph, params).video_features(video)


@functools.partial(jax.jit, static_argnums=0, static_argnames="layer")
def encode(graph, params, audio, seen, mask=None, layer=None):
    model = nnx.merge(graph, params)
    heard = None if audio is None else model.audio_features(audio)
    return model.encode(heard, seen, mask, layer)


@pytest.fixture(scope="module", params=["large", "postln_add"])
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def folder(variant, tmp_path_factory):
    folder = tmp_path_factory.mktemp(variant)
    checkpoint = folder / "checkpoint.pt"
    checkpoint.write_bytes(lzma.decompress((GOLDEN / "avhubert" / f"{variant}_tiny.pt.xz").read_bytes()))
    convert(checkpoint, folder / "encoder")
    return folder / "encoder"


@pytest.fixture(scope="module")
def encoder(folder):
    return Encoder.load(folder)


@pytest.fixture(scope="module")
def runs(encoder, variant):
    """For each utterance: the recorded arrays, the filterbank values, the frames and what the video extractor gives."""
    result = []
    for path in sorted((GOLDEN / "avhubert").glob(f"{variant}_utt*.npz")):
        media = np.load(GOLDEN / "media" / path.name.replace(variant + "_", ""))
        video = media["video_transformed"][None]
        result.append((np.load(path), media["audio_norm"][None], video, encoder.see(video)))
    assert len(result) >= 2
    return result


@functools.partial(jax.jit, static_argnums=0)
def trunk_activations(graph, params, video):
    """Inside the video extractor, by the recorded names. Its graph is the same for both variants: one compilation."""
    extractor = nnx.merge(graph, params)
    x = extractor.frontend(video)
    found = {"frontend3D_first2frames": jnp.moveaxis(x[:2], (0, 3), (1, 0))[None]}
    for i in (1, 2, 3, 4):
        x = getattr(extractor, f"stage{i}")(x)
        found[f"trunk_layer{i}_spatialmean"] = x.mean((1, 2))
    return found | {"resnet": x.mean((1, 2)).T[None]}


def fusion_activations(model, heard, seen):
    """(The transformer's input, what is recorded on the way to it) for features of one or both modalities."""
    x = model.fuse(heard, seen)
    if model.fusion_proj is None:
        return x, {"fused_ln": x}
    both = [jnp.zeros_like(x) if one is None else one for one in (heard, seen)]
    return x, {"fused_ln": model.fusion_norm(jnp.concatenate(both, -1)), "post_extract_proj": x}


@functools.partial(jax.jit, static_argnums=0)
def activations(graph, params, audio, seen, mask=None):
    """Up to the first block's attention, by modalities and recorded names, in the recorded layouts."""
    model = nnx.merge(graph, params)
    heard = model.audio_features(audio)
    x, found = fusion_activations(model, heard, seen)
    attended = None
    if mask is not None:
        x, attended = jnp.where(mask[..., None], 0, x), ~mask[:, None, None, :]
    channels_first = {"fe_audio": heard, "fe_video": seen, "pos_conv": model.positional_conv(x)}
    x = model.position(x)
    blocks, weights = nnx.split(model.blocks)
    first = nnx.merge(blocks, jax.tree.map(lambda stack: stack[0], weights))
    attention_input = first.attention_norm(x) if model.config.layer_norm_first else x
    attention = first.attend(attention_input, attended)
    time_first = {"encoder_layer_input": x, "layer0_attn_in": attention_input, "layer0_attn_out": attention}
    found |= {name: jnp.swapaxes(x, 1, 2) for name, x in channels_first.items()}
    found |= {name: jnp.swapaxes(x, 0, 1) for name, x in time_first.items()}
    return {
        "av": found,
        "v": fusion_activations(model, None, seen)[1],
        "a": fusion_activations(model, heard, None)[1],
    }


def check_activations(recorded, prefix, ours):
    names = [name for name in recorded.files if name.startswith(prefix)]
    assert names
    for name in names:
        # The frontend's values reach 15: there the tolerance counts in units of the largest one.
        scale = max(1, np.abs(recorded[name]).max())
        output, expected = ours[name.removeprefix(prefix)] / scale, recorded[name] / scale
        np.testing.assert_allclose(output, expected, **SINGLE_MODULE, err_msg=name)


def test_activations_equal_the_recorded_ones(encoder, runs):
    extractor = nnx.split(nnx.merge(encoder.graph, encoder.params).video)
    for recorded, audio, video, seen in runs:
        ours = activations(encoder.graph, encoder.params, audio, seen)
        check_activations(recorded, "act_av_", ours["av"] | trunk_activations(*extractor, video))
        check_activations(recorded, "act_v_", ours["v"])
        check_activations(recorded, "act_a_", ours["a"])


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """(PyTorch encoder, folder) for both variants at sizes that are nobody's default."""
    pairs = {}
    for name, config in (("pre-LN", PRE_LN), ("post-LN", POST_LN)):
        model, folder = random_torch_encoder(config), tmp_path_factory.mktemp(name)
        avhubert_torch.save_encoder(model, folder)
        pairs[name] = model, folder
    return pairs


def clip(config, frames, batch=2):
    """Random inputs, the second row padded by a third."""
    rng = np.random.default_rng(frames)
    mask = np.zeros((batch, frames), bool)
    mask[1:, frames - frames // 3 :] = True
    audio, video = rng.normal(size=(batch, frames, config.audio_dim)), rng.normal(size=(batch, frames, 88, 88))
    audio[mask], video[mask] = 0, 0
    return audio.astype(np.float32), video.astype(np.float32), mask


@torch.no_grad()
def torch_encode(model, audio, video, mask, layer=None):
    heard = None if audio is None else model.audio_features(torch.from_numpy(audio))
    seen = None if video is None else model.video_features(torch.from_numpy(video))
    return model.encode(heard, seen, torch.from_numpy(mask), layer)


@pytest.mark.parametrize("name", ["pre-LN", "post-LN"])
@pytest.mark.parametrize(
    ("frames", "layer", "modalities"), [(1, 2, "audio video"), (6, None, "video"), (9, 0, "audio")]
)
def test_equals_the_torch_encoder_at_other_sizes(narrow, name, frames, layer, modalities):
    model, folder = narrow[name]
    encoder = Encoder.load(folder)
    audio, video, mask = clip(encoder.config, frames)
    inputs = (audio if "audio" in modalities else None, video if "video" in modalities else None)
    kept, final = encoder.encode(*inputs, mask, layer=layer)
    expected_kept, expected_final = torch_encode(model, *inputs, mask, layer)
    np.testing.assert_allclose(final, expected_final, **SINGLE_MODULE)
    assert (kept is None) == (layer is None)
    if layer is not None:
        np.testing.assert_allclose(kept, expected_kept, **SINGLE_MODULE)


def test_bfloat16_is_near_float32(narrow):
    model, folder = narrow["pre-LN"]
    encoder = Encoder.load(folder, jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(encoder.params)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    inputs = clip(encoder.config, 6)
    kept, final = encoder.encode(*inputs, layer=2)
    expected_kept, expected_final = torch_encode(model, *inputs, layer=2)
    assert kept.dtype == final.dtype == jnp.bfloat16
    np.testing.assert_allclose(kept.astype(jnp.float32), expected_kept, atol=0.1, rtol=0)
    np.testing.assert_allclose(final.astype(jnp.float32), expected_final, atol=0.1, rtol=0)


def test_layer_out_of_range_and_no_modality(narrow):
    encoder = Encoder.load(narrow["pre-LN"][1])
    audio, _, _ = clip(encoder.config, 6)
    for layer in (-1, encoder.config.num_layers + 1):
        with pytest.raises(ValueError, match=f"layer {layer}"):
            encoder.encode(audio, None, layer=layer)
    with pytest.raises(ValueError, match="audio, video or both"):
        encoder.encode(None, None)


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected = tensor.numpy()
        assert ours[name].dtype == expected.dtype and ours[name].flags.c_contiguous, name
        np.testing.assert_array_equal(ours[name], expected, strict=True, err_msg=name)


def test_round_trip_is_bit_exact(folder, encoder):
    # Through the model on the device, as training would give them back.
    model = nnx.merge(encoder.graph, encoder.params)
    back = to_torch_names(nnx.to_pure_dict(nnx.state(model)))
    assert_same_weights(back, safetensors.torch.load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_as_float32(narrow, tmp_path, dtype):
    model, _ = narrow["pre-LN"]
    avhubert_torch.save_encoder(model, tmp_path, dtype)
    expected = {
        name: tensor.to(dtype).float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    assert_same_weights(to_torch_names(load_flax(tmp_path)[1]), expected)


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
    ours = {tensor.name: list(tensor.shape) for tensor in tensors(abstract_params(config))}
    theirs = {name: shape_and_dtype[0] for name, shape_and_dtype in published["keys"].items()}
    assert {name for name in theirs if name not in ours} == set(avhubert_torch.UNUSED_KEYS)
    assert ours == {name: shape for name, shape in theirs.items() if name in ours}


def test_a_weight_the_table_does_not_know_is_named(encoder):
    with pytest.raises(InputError, match="without a name in the PyTorch encoder: blocks/q/scale, surplus"):
        to_torch_names(encoder.params | {"surplus": np.zeros(1), "blocks": {"q": {"scale": np.zeros((4, 1))}}})


@pytest.fixture
def edited(narrow, tmp_path):
    """A folder whose weights a test may change: edited(change) rewrites it and returns it."""

    def edit(change):
        _, folder = narrow["pre-LN"]
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        return tmp_path

    return edit


def test_missing_and_unknown_names_are_all_listed(edited):
    def change(weights):
        del weights["layer_norm.weight"], weights["encoder.layers.1.fc1.bias"]
        weights["surplus.weight"] = torch.zeros(1)
        weights["mask_emb"] = torch.zeros(1)

    with pytest.raises(InputError) as caught:
        load_flax(edited(change))
    for part in (
        "model.safetensors",
        "missing: encoder.layers.1.fc1.bias, layer_norm.weight",
        "unknown: mask_emb, surplus.weight",
    ):
        assert part in str(caught.value)


def test_a_config_that_contradicts_the_weights_is_an_error(edited):
    def change(weights):
        weights["layer_norm.bias"] = torch.zeros(3)

    folder = edited(change)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ffn_dim": 21}))
    with pytest.raises(InputError) as caught:
        load_flax(folder)
    for part in ("layer_norm.bias is [3] and not [48]", "encoder.layers.2.fc1.weight is [20, 24] and not [21, 24]"):
        assert part in str(caught.value)
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 2, "modality_fuse": "add"}))
    with pytest.raises(InputError, match="unknown: encoder.layers.2.fc1.bias, .*post_extract_proj.weight"):
        load_flax(folder)


def test_weights_that_are_no_numbers_are_refused(edited):
    def change(weights):
        weights["encoder.layers.1.fc1.bias"][2] = torch.nan

    with pytest.raises(InputError, match="encoder.layers.1.fc1.bias holds values that are not finite"):
        load_flax(edited(change))


def test_weights_of_another_type_are_refused(edited):
    def change(weights):
        weights["layer_norm.bias"] = weights["layer_norm.bias"].double()

    with pytest.raises(InputError, match="weights of type F64, expected one of F32, F16, BF16, I64"):
        load_flax(edited(change))


def test_damaged_and_missing_files_are_named(edited):
    folder = edited(lambda weights: None)
    content = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", b"\x10\0\0\0\0\0\0\0 not a header   ", content[:-100]):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(InputError, match="model.safetensors: not a readable safetensors file"):
            load_flax(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors: no such file"):
        load_flax(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="config.json: no such file"):
        load_flax(folder)


def test_an_encoder_of_the_first_blocks_gives_that_layer_in_jax_and_pytorch(folder, runs, tmp_path):
    """As the reference's output_layer does, without the norm behind the last block."""
    checkpoint = folder.parent / "checkpoint.pt"
    convert(checkpoint, tmp_path / "two", layers=2)
    shorter = Encoder.load(tmp_path / "two")
    assert shorter.config.num_layers == 2
    recorded, audio, video, _ = runs[0]
    expected = recorded["dump_layer2"]
    np.testing.assert_allclose(shorter.encode(audio, video)[1][0], expected, **WHOLE_MODEL)
    model = avhubert_torch.load_encoder(tmp_path / "two")
    with torch.inference_mode():
        heard, seen = model.audio_features(torch.tensor(audio)), model.video_features(torch.tensor(video))
        _, features = model.encode(heard, seen)
    np.testing.assert_allclose(features[0], expected, **WHOLE_MODEL)
    with pytest.raises(InputError, match="has 4 blocks, expected --layers up to that, not 5"):
        convert(checkpoint, tmp_path / "five", layers=5)
    with pytest.raises(InputError, match="holds a part of the blocks, expected all of them"):
        read_encoder(tmp_path / "two")
