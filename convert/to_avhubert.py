"""Writes an encoder folder as the Hugging Face class AVHubertModel saves itself: config.json + model.safetensors.

    python -m convert.to_avhubert ENCODER_FOLDER --output DIR

Two weights that only the pre-training used come from pretraining.safetensors, and are left out where that is missing.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epath
from safetensors.numpy import save_file

from convert.avhubert_names import to_hugging_face
from convert.fairseq_container import PRETRAINED_ONLY
from convert.hf_avhubert import FIXED_SETTINGS
from convert.names import REFERENCE_ENCODER, Shapes
from convert.pretrained import PRETRAINING_FILE
from convert.safetensors_files import HEADER, WHOLE
from convert.to_reference import read_encoder
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.runtime.errors import InputError, reported_to_user
from viavsp_jax.runtime.options import new_folder_on_disk

# Settings of training, without which the class cannot be built; those of the released encoders.
TRAINING_SETTINGS = {
    "audio_dropout": 0.5, "dropout": 0.1, "dropout_features": 0.1, "dropout_input": 0.1, "feature_grad_mult": 0.1,
    "label_rate": 25, "layerdrop": 0.0, "logit_temp": 0.1, "mask_channel_length": 10, "mask_channel_min_space": 1,
    "mask_channel_other": 0.0, "mask_channel_prob": 0.0, "mask_channel_selection": "static", "mask_length_audio": 10,
    "mask_length_image": 5, "mask_min_space": 1, "mask_other": 0.0, "mask_prob_audio": 0.8, "mask_prob_image": 0.3,
    "mask_selection": "static", "modality": "av", "modality_dropout": 0.5, "no_mask_channel_overlap": False,
    "no_mask_overlap": False, "num_dictionaries": 1, "resnet_weights": None, "sample_rate": 25,
    "selection_type": "same_seq", "sim_type": "cosine", "skip_masked": False, "skip_nomask": False,
    "sub_encoder_layers": 0, "target_glu": False, "untie_final_proj": True,
}  # fmt: skip


def hugging_face_settings(config: AVHubertConfig, unused: Shapes, dtype: str) -> dict[str, Any]:
    """The content of config.json.

    Args:
      config: the encoder's.
      unused: shapes of mask_emb and label_embs_concat, where they are there.
      dtype: of the weights.

    Raises InputError for an encoder that the class does not have.
    """
    plain = AVHubertConfig()
    for name in ("layer_norm_first", "frontend_channels", "resnet_channels", "final_norm"):
        if (value := getattr(config, name)) != (only := getattr(plain, name)):
            raise InputError(f"the encoder's {name} is {value}, AVHubertModel has {only} only")
    num_classes, final_dim = unused.get("label_embs_concat", (2004, 256))
    return {
        "architectures": ["AVHubertModel"],
        "model_type": "wav2vec2",
        "hidden_size": config.embed_dim,
        "encoder_embed_dim": config.embed_dim,
        "output_hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_dim,
        "num_conv_pos_embeddings": config.conv_pos,
        "num_conv_pos_embedding_groups": config.conv_pos_groups,
        "audio_feat_dim": config.audio_dim,
        "modality_fuse": config.modality_fuse,
        "masking_type": "feature" if unused.get("mask_emb", (config.audio_dim,)) != (config.audio_dim,) else "input",
        "num_classes": num_classes,
        "final_dim": final_dim,
        **FIXED_SETTINGS,
        **TRAINING_SETTINGS,
        "torch_dtype": dtype,
    }


def convert(folder: epath.PathLike, output: epath.PathLike) -> None:
    """Writes the folder; prints what it lacks. Raises InputError if the encoder is not usable, or of another kind."""
    folder, output = epath.Path(folder), pathlib.Path(output)
    if output.resolve() == pathlib.Path(folder).resolve():
        raise InputError(f"{output} is the encoder's folder itself: give another --output")
    encoder = read_encoder(folder)
    pieces = {piece.name.removeprefix(REFERENCE_ENCODER): piece for piece in encoder.pieces}
    unused = {name: pieces[name].shape for name in PRETRAINED_ONLY if name in pieces}
    dtype = pieces["layer_norm.weight"].dtype.name
    try:
        settings = hugging_face_settings(encoder.config, unused, dtype)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    output.mkdir(parents=True, exist_ok=True)
    save_file({to_hugging_face(name): piece.read() for name, piece in pieces.items()}, output / WHOLE, HEADER)
    (output / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if absent := [name for name in PRETRAINED_ONLY if name not in pieces]:
        print(f"note: {' and '.join(absent)} are left out, since they are not in {folder / PRETRAINING_FILE}")
    if encoder.config.waveform == "int16":
        print("note: the encoder hears int16 samples; code around AVHubertModel makes audio features of floats")
    print(f"wrote {output}")


@reported_to_user()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.to_avhubert", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="ENCODER_FOLDER", help="config.json and model.safetensors of an encoder")
    parser.add_argument(
        "--output", type=new_folder_on_disk("--output"), required=True, metavar="DIR", help="folder to write"
    )
    args = parser.parse_args(argv)
    convert(args.folder, args.output)


if __name__ == "__main__":
    main()
