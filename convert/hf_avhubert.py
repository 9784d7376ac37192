"""AV-HuBERT encoders in Hugging Face form: the weights, alone or inside a larger model, and their config.json.

There are two such forms. AVHubertModel's has names of its own (convert/avhubert_names.py), settings by transformers'
names, and is pre-LN always. The older one keeps fairseq's names, in settings, too.

Letters: D width, F feed-forward width, K kernel of the positional convolution, A audio values of a frame.
"""

import json
import pathlib
from typing import Any

import torch

from convert.avhubert_names import FAIRSEQ, Located, locate, others
from convert.checkpoints import FairseqCheckpoint
from convert.from_fairseq import RESNET, encoder_config
from convert.model_files import read_tensors, shapes_in, weights_files
from convert.names import Shapes
from convert.pretrained import Pretrained
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.runtime.errors import InputError

CONFIG_FILE = "config.json"
# Settings that leave no trace in names or shapes; the encoder knows these values only.
FIXED_SETTINGS = {
    "hidden_act": "gelu", "feat_extract_activation": "gelu", "resnet_relu_type": "prelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
# MuAViC's config.json has the second or third name where there is no first; elsewhere these mislead.
WIDTH = ("hidden_size", "encoder_hidden_size", "d_model")
HEADS = ("num_attention_heads", "encoder_attention_heads")


def read_pretrained(source: pathlib.Path) -> Pretrained:
    """The encoder of a Hugging Face folder, or of a file of weights with config.json beside it; says what is left out.

    Raises InputError if there is not one whole encoder, or its config is not usable or does not fit the weights.
    """
    files = weights_files(source)
    given, path = _read_config(files[0].parent / CONFIG_FILE), str(files[0].parent / CONFIG_FILE)
    shapes, place = {}, {}
    for file in files:
        found = shapes_in(file)
        shapes |= found
        place |= dict.fromkeys(found, file)
    encoder = locate(shapes, str(source))
    left_out = others(shapes, encoder, str(source))
    sizes = {ours: shapes[theirs] for ours, theirs in encoder.names.items()}
    config = None if encoder.form == FAIRSEQ else hugging_face_config(given, sizes, path)
    weights = _read(encoder, place)
    if config is None:
        config = encoder_config(FairseqCheckpoint(weights, {"model": given}, None), path)
    under = f" under {encoder.prefix!r}" if encoder.prefix else ""
    print(f"read {files[0].name if len(files) == 1 else f'{len(files)} files'}: {len(weights)} weights{under}")
    if left_out:
        print(f"left out what is not the encoder's: {left_out}")
    if given.get("modality", "av") != "av":
        print(f"note: {path} says modality {given['modality']!r}; here it is chosen for each shard folder")
    return Pretrained(config, weights, str(source))


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected the config of an AV-HuBERT encoder beside its weights")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(given, dict):
        raise InputError(f"{path}: expected a JSON object with the settings of an AV-HuBERT encoder")
    return given


def _read(encoder: Located, place: dict[str, pathlib.Path]) -> dict[str, torch.Tensor]:
    """The encoder's weights by fairseq's names, from the files that `place` says."""
    weights, ours = {}, {theirs: name for name, theirs in encoder.names.items()}
    for file in dict.fromkeys(place[name] for name in ours):
        for name, tensor in read_tensors(file, [name for name in ours if place[name] == file]).items():
            counter = name.endswith("num_batches_tracked")
            if not (tensor.is_floating_point() and tensor.dtype.itemsize > 1 or counter):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise InputError(f"{file}: {name} is {kind}, expected float32, float16 or bfloat16")
            weights[ours[name]] = tensor.long() if counter else tensor
    return weights


def hugging_face_config(given: dict[str, Any], shapes: Shapes, path: str) -> AVHubertConfig:
    """The encoder's config by the shapes of its weights, which the settings in config.json have to agree with.

    Args:
      given: the content of config.json; settings that have no effect there are not looked at.
      shapes: of the encoder's weights, by fairseq's names.
      path: of config.json, for errors.

    Raises InputError that lists all that disagrees or is not supported.
    """
    sizes = _sizes(shapes, path)
    fuse = "concat" if "post_extract_proj.weight" in shapes else "add"
    values = {
        next((name for name in WIDTH if name in given), WIDTH[0]): sizes["embed_dim"],
        "encoder_embed_dim": sizes["embed_dim"],
        "num_hidden_layers": sizes["num_layers"],
        "intermediate_size": sizes["ffn_dim"],
        "num_conv_pos_embeddings": sizes["conv_pos"],
        "num_conv_pos_embedding_groups": sizes["conv_pos_groups"],
        "audio_feat_dim": sizes["audio_dim"],
        "modality_fuse": fuse,
    }
    wrong = [
        f"{name} is {given[name]!r}, the weights have {x}" for name, x in values.items() if given.get(name, x) != x
    ]
    wrong += [
        f"{name} is {given[name]!r}, only {x!r} is supported"
        for name, x in FIXED_SETTINGS.items()
        if given.get(name, x) != x
    ]
    wrong += _wrong_for_pretraining(given, shapes, sizes)
    heads = next((name for name in HEADS if name in given), None)
    if heads is None:
        wrong.append(f"it lacks {HEADS[0]}")
    elif type(given[heads]) is not int or given[heads] < 1 or sizes["embed_dim"] % given[heads]:
        wrong.append(f"{heads} is {given[heads]!r}, expected a divisor of the width {sizes['embed_dim']}")
    if wrong:
        raise InputError(f"{path}: {'; '.join(wrong)}")
    try:
        # The code around this form makes audio features of floats.
        return AVHubertConfig(**sizes, num_heads=given[heads], modality_fuse=fuse, waveform="float")
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _sizes(shapes: Shapes, path: str) -> dict[str, Any]:
    """Fields of the config that shapes tell."""
    try:
        width, of_group, kernel = shapes["encoder.pos_conv.0.weight_v"]
        stages = [shapes[f"{RESNET}trunk.layer{stage}.0.conv1.weight"][0] for stage in (1, 2, 3, 4)]
        return {
            "embed_dim": width,
            "num_layers": sum(name.endswith(".fc1.weight") for name in shapes),
            "ffn_dim": shapes["encoder.layers.0.fc1.weight"][0],
            "audio_dim": shapes["feature_extractor_audio.proj.weight"][1],
            "frontend_channels": shapes[f"{RESNET}frontend3D.0.weight"][0],
            "resnet_channels": tuple(stages),
            "conv_pos": kernel,
            "conv_pos_groups": width // of_group,
        }
    except (ValueError, IndexError, ZeroDivisionError):
        raise InputError(f"{path}: the weights beside it have other axes than AV-HuBERT's") from None


def _wrong_for_pretraining(given: dict[str, Any], shapes: Shapes, sizes: dict[str, Any]) -> list[str]:
    """What disagrees with the two weights that only the pre-training used, where they are there."""
    expected = {}
    if "mask_emb" in shapes and "masking_type" in given:
        expected["mask_emb"] = (sizes["audio_dim" if given["masking_type"] == "input" else "embed_dim"],)
    if "label_embs_concat" in shapes and {"num_classes", "final_dim"} <= given.keys():
        expected["label_embs_concat"] = (given["num_classes"], given["final_dim"])
    return [
        f"{name} of the weights is {list(shapes[name])}, by its settings {list(shape)}"
        for name, shape in expected.items()
        if shapes[name] != shape
    ]
