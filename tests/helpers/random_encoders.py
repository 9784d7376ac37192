"""Small AV-HuBERT encoders with random weights."""

import dataclasses

import torch

from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features import avhubert_torch

PRE_LN = AVHubertConfig(
    embed_dim=24,
    num_layers=3,
    num_heads=2,
    ffn_dim=20,
    audio_dim=12,
    frontend_channels=3,
    resnet_channels=(4, 6, 8, 10),
    conv_pos=6,
    conv_pos_groups=4,
)


POST_LN = dataclasses.replace(
    PRE_LN, layer_norm_first=False, modality_fuse="add", num_heads=3, conv_pos=5, conv_pos_groups=1
)


def random_torch_encoder(config, seed=0):
    """Every weight and statistic away from its start value, so that none can be left out unnoticed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(0)
    model = avhubert_torch.AVHubert(config).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(600_000)
        elif tensor.ndim == 1:
            near_one = "running_var" in name or "norm.weight" in name or ".bn" in name and "weight" in name
            tensor.uniform_(-0.3, 0.3, generator=generator).add_(1 if near_one else 0)
        else:
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
    return model
