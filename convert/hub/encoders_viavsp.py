"""The encoders of an export, the centres of the clusters, and how frames become positions.

Part of every export, see modeling_viavsp.py. Letters: E encoder width, K clusters.
"""

import pathlib
import types

import torch
from safetensors.torch import load_file
from transformers import PretrainedConfig

from .compression_viavsp import Compression
from .language_model_viavsp import ExportError
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


def chosen_compression(config: PretrainedConfig, text: str | None) -> Compression:
    """How frames become positions, as a text says or, by None, config.json.

    Raises ExportError if there is no such way, or the export lacks the encoder, or clusters that are needed.
    """
    try:
        found = Compression.of(text or config.compression)
    except ValueError as error:
        raise ExportError(str(error)) from None
    if not config.encoder:
        raise ExportError(
            f"{config.name_or_path} was exported without encoder and clusters: give convert.to_hf --encoder and "
            "--kmeans"
        )
    if found.by_clusters and not config.cluster_layer:
        raise ExportError(
            f"{config.name_or_path} was exported without clusters, by which compression {str(found)!r} averages "
            "frames: expected pool:K, or an export of convert.to_hf with --kmeans"
        )
    return found
