"""Converts a pre-trained AV-HuBERT checkpoint of fairseq to config.json + model.safetensors.

Usage: python -m convert.from_fairseq large_vox_iter5.pt --output avhubert_large [--layers N]

With --layers the features are the output of block N as it is, as fairseq's output_layer gives it, and what lies behind
is left out: of the shards, of training and of exports.
pretraining.safetensors beside them keeps what only the pre-training used, for the way back (convert.to_reference).
"""

import argparse
from collections.abc import Sequence

import torch
from etils import epath

from convert.checkpoints import FairseqCheckpoint, read_fairseq
from convert.pretrained import Pretrained, add_options, first_blocks, write_encoder
from viavsp_jax.data.features import CROP_SIZE, STACKED_FRAMES, VIDEO_MEAN, VIDEO_STD
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.runtime.errors import InputError, reported_to_user

CONFIG_NAMES = {
    "embed_dim": "encoder_embed_dim",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "ffn_dim": "encoder_ffn_embed_dim",
    "audio_dim": "audio_feat_dim",
    "layer_norm_first": "layer_norm_first",
    "modality_fuse": "modality_fuse",
    "conv_pos": "conv_pos",
    "conv_pos_groups": "conv_pos_groups",
}

# Settings that leave no trace in names or shapes; the encoder and media.py know these values only.
FIXED_SETTINGS = {
    "activation_fn": "gelu",
    "normalize": True,
    "image_crop_size": CROP_SIZE,
    "image_mean": VIDEO_MEAN,
    "image_std": VIDEO_STD,
    "stack_order_audio": STACKED_FRAMES,
}

RESNET = "feature_extractor_video.resnet."


def convert(
    checkpoint: epath.PathLike, output: epath.PathLike, dtype: torch.dtype = torch.float32, layers: int | None = None
) -> None:
    """Writes the folder that avhubert_torch.load_encoder reads, of the first `layers` blocks or all.

    Raises InputError if the checkpoint is not a pre-trained AV-HuBERT or a weight does not fit `dtype`.
    """
    write_encoder(output, first_blocks(read_pretrained(checkpoint), layers), dtype)


def read_pretrained(checkpoint: epath.PathLike) -> Pretrained:
    """The encoder of a fairseq checkpoint. Raises InputError if it holds no pre-trained AV-HuBERT."""
    read = read_fairseq(checkpoint)
    return Pretrained(encoder_config(read, str(checkpoint)), read.model, str(checkpoint))


def encoder_config(checkpoint: FairseqCheckpoint, source: str) -> AVHubertConfig:
    """The encoder's config, from the settings and, for the video frontend, the tensors of the checkpoint.

    Raises InputError, naming `source`, if a setting or a tensor is missing or has a value not supported.
    """
    settings = checkpoint.cfg["model"]
    missing = sorted(name for name in CONFIG_NAMES.values() if name not in settings)
    if missing:
        raise InputError(f"{source}: not a pre-trained AV-HuBERT, its settings lack {missing}")
    task = checkpoint.cfg.get("task")
    both = settings | (task if isinstance(task, dict) else {})
    for name, value in FIXED_SETTINGS.items():
        if both.get(name, value) != value:
            raise InputError(f"{source}: {name} is {both[name]!r}, only {value!r} is supported")
    convolutions = [f"{RESNET}trunk.layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)]
    convolutions.insert(0, f"{RESNET}frontend3D.0.weight")
    absent = [name for name in convolutions if name not in checkpoint.model or not checkpoint.model[name].ndim]
    if absent:
        raise InputError(f"{source}: not a pre-trained AV-HuBERT, missing {', '.join(absent)}")
    frontend_channels, *resnet_channels = (checkpoint.model[name].shape[0] for name in convolutions)
    try:
        return AVHubertConfig(
            **{field: settings[name] for field, name in CONFIG_NAMES.items()},
            frontend_channels=frontend_channels,
            resnet_channels=tuple(resnet_channels),
        )
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error


@reported_to_user()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.from_fairseq", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT.pt", help="fairseq checkpoint of AV-HuBERT")
    add_options(parser)
    args = parser.parse_args(argv)
    convert(args.checkpoint, args.output, getattr(torch, args.dtype), args.layers)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
