"""The encoders of an export and the centres of the clusters.

Part of every export, see modeling_viavsp.py. Letters: E encoder width, K clusters.
"""

import pathlib
import types

import torch
from safetensors.torch import load_file
from transformers import PretrainedConfig

from .modeling_avhubert import AVHubert


def load_encoders(
    config: PretrainedConfig, root: pathlib.Path, device: torch.device, dtype: torch.dtype
) -> tuple[AVHubert | None, AVHubert | None, torch.Tensor | None]:
    """The encoder, the one of the clusters, and the centres float32[K, E]; None for what an export does not have."""

    def load(name: str) -> AVHubert:
        with torch.device("meta"):
            encoder = AVHubert(types.SimpleNamespace(**config.encoder))
        encoder.load_state_dict(load_file(root / name / "model.safetensors"), assign=True)
        return encoder.to(device=device, dtype=dtype).eval()

    if not config.encoder:
        return None, None, None
    encoder = cluster_encoder = load("encoder")
    if not config.cluster_layer:
        return encoder, encoder, None
    if config.trained_encoder:
        cluster_encoder = load("cluster_encoder")
    return encoder, cluster_encoder, load_file(root / "kmeans.safetensors")["centers"].to(device)
