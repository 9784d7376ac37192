"""Random AV-HuBERT encoders as Hugging Face folders, by the recorded table of names."""

import json

import torch
from places import GOLDEN_OPEN
from random_encoders import PRE_LN, random_torch_encoder
from safetensors.torch import save_file

_MAP = json.loads((GOLDEN_OPEN / "hf_avhubert/keys/key_map.json").read_text(encoding="utf-8"))["map"]
TABLE = {ours.replace("{n}", str(n)): theirs and theirs.replace("{n}", str(n)) for ours, theirs in _MAP.items()
         for n in range(PRE_LN.num_layers)}  # fmt: skip
# Fields that transformers writes and that AV-HuBERT's classes do not follow.
MISLEADING = {"do_stable_layer_norm": False, "encoder_layers": 12, "encoder_ffn_dim": 2048, "conv_dim": [512] * 7,
              "encoder_attention_heads": 16, "d_model": 99, "adim": 64, "model_type": "wav2vec2"}  # fmt: skip


def settings(config=PRE_LN, **changes):
    """config.json of AVHubertModel; None takes a setting away."""
    found = MISLEADING | {
        "hidden_size": config.embed_dim, "encoder_embed_dim": config.embed_dim, "modality": "av",
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_dim, "num_conv_pos_embeddings": config.conv_pos,
        "num_conv_pos_embedding_groups": config.conv_pos_groups, "audio_feat_dim": config.audio_dim,
        "modality_fuse": config.modality_fuse, "hidden_act": "gelu", "feat_extract_activation": "gelu",
        "resnet_relu_type": "prelu", "layer_norm_eps": 1e-5, "masking_type": "input", "num_classes": 9, "final_dim": 5,
    }  # fmt: skip
    return {name: value for name, value in (found | changes).items() if value is not None}


def fairseq_weights(config=PRE_LN):
    """All weights by fairseq's names, with the two that only the pre-training used."""
    weights = {name: value.clone() for name, value in random_torch_encoder(config).state_dict().items()}
    return weights | {"mask_emb": torch.rand(config.audio_dim), "label_embs_concat": torch.rand(9, 5)}


def theirs(weights, prefix=""):
    """The same by AVHubertModel's names."""
    return {prefix + TABLE.get(name, name): value for name, value in weights.items()}


def write(folder, weights, config=None, name="model.safetensors"):
    """A folder of one file of weights and config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings() if config is None else config))
    if name.endswith(".safetensors"):
        save_file({key: value.clone() for key, value in weights.items()}, folder / name, {"format": "pt"})
    else:
        torch.save(weights, folder / name)
    return folder
