"""AV-HuBERT in PyTorch: mouth video and speech features in, one vector a frame out.

Parameter names are those of fairseq's AV-HuBERT checkpoints, so weights load by name. A `config` has the fields of
viavsp_jax.models.avhubert.config.AVHubertConfig. The file is part of every export, so it needs PyTorch and NumPy only.

Letters: B batch, T frames, D embed_dim, H heads, C channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: [N, Cin, h, w] -> [N, Cout, h / stride, w / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.PReLU(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(x)) + shortcut)


class ResNetTrunk(nn.Module):
    """ResNet-18 without stem and classifier: [N, C, h, w] -> [N, resnet_channels[-1]]."""

    def __init__(self, config: Any):
        super().__init__()
        in_channels = config.frontend_channels
        for i, channels in enumerate(config.resnet_channels):
            stage = nn.Sequential(
                BasicBlock(in_channels, channels, stride=1 if i == 0 else 2), BasicBlock(channels, channels, 1)
            )
            setattr(self, f"layer{i + 1}", stage)
            in_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x.mean(dim=(2, 3))


class ResNet(nn.Module):
    """The 3D convolution over time and space, then the trunk frame by frame: [B, T, 88, 88] -> [B, T, C]."""

    def __init__(self, config: Any):
        super().__init__()
        self.frontend3D = nn.Sequential(
            nn.Conv3d(1, config.frontend_channels, (5, 7, 7), (1, 2, 2), padding=(2, 3, 3), bias=False),
            nn.BatchNorm3d(config.frontend_channels),
            nn.PReLU(config.frontend_channels),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
        )
        self.trunk = ResNetTrunk(config)

    def forward(self, video: Tensor) -> Tensor:
        x = self.frontend3D(video[:, None]).transpose(1, 2)
        return self.trunk(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class VideoExtractor(nn.Module):
    """[B, T, 88, 88] -> [B, T, D]."""

    def __init__(self, config: Any):
        super().__init__()
        self.resnet = ResNet(config)
        self.proj = nn.Linear(config.resnet_channels[-1], config.embed_dim)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(self.resnet(video))


class AudioExtractor(nn.Module):
    """[B, T, audio_dim] -> [B, T, D]."""

    def __init__(self, config: Any):
        super().__init__()
        self.proj = nn.Linear(config.audio_dim, config.embed_dim)

    def forward(self, audio: Tensor) -> Tensor:
        return self.proj(audio)


class PositionalConv(nn.Module):
    """Grouped convolution over time, [B, D, T] -> [B, D, T], with one learned norm for each kernel tap."""

    def __init__(self, config: Any):
        super().__init__()
        width, kernel, groups = config.embed_dim, config.conv_pos, config.conv_pos_groups
        self.groups = groups
        weight = torch.empty(width, width // groups, kernel).normal_(std=(4 / (kernel * width)) ** 0.5)
        self.weight_v = nn.Parameter(weight)
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight_v.shape[2]
        norm = torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True)
        weight = self.weight_v * (self.weight_g / norm)
        # An even kernel yields one frame too many; the reference drops the last.
        return F.conv1d(x, weight, self.bias, padding=kernel // 2, groups=self.groups)[..., : x.shape[2]]


class SelfAttention(nn.Module):
    """Multi-head self-attention over [B, T, D]; `attended` bool [B, 1, 1, T] is False at padded keys."""

    def __init__(self, config: Any):
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.k_proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.v_proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.out_proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, attended: Tensor | None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attended)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and feed-forward over [B, T, D], each with a residual, pre-LN or post-LN."""

    def __init__(self, config: Any):
        super().__init__()
        self.layer_norm_first = config.layer_norm_first
        self.self_attn = SelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.embed_dim)
        self.fc1 = nn.Linear(config.embed_dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.embed_dim)
        self.final_layer_norm = nn.LayerNorm(config.embed_dim)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

    def forward(self, x: Tensor, attended: Tensor | None) -> Tensor:
        if self.layer_norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), attended)
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x, attended))
        return self.final_layer_norm(x + self.feed_forward(x))


class TransformerEncoder(nn.Module):
    """Positional convolution, then the blocks."""

    def __init__(self, config: Any):
        super().__init__()
        self.layer_norm_first = config.layer_norm_first
        self.final_norm = getattr(config, "final_norm", True)  # exports of earlier versions do not say
        self.pos_conv = nn.Sequential(PositionalConv(config), nn.GELU())
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.layer_norm = nn.LayerNorm(config.embed_dim)

    def forward(self, x: Tensor, padding_mask: Tensor | None, layer: int | None) -> tuple[Tensor | None, Tensor]:
        """[B, T, D] -> the raw output of block `layer` (0 = x itself, None = not kept), the final output."""
        kept = x if layer == 0 else None
        attended = None if padding_mask is None else ~padding_mask[:, None, None, :]
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not self.layer_norm_first:
            x = self.layer_norm(x)
        for number, block in enumerate(self.layers, start=1):
            x = block(x, attended)
            if number == layer:
                kept = x
        return kept, self.layer_norm(x) if self.layer_norm_first and self.final_norm else x


class AVHubert(nn.Module):
    """The encoder. Inputs are cast to the dtype of the weights; outputs have that dtype."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.feature_extractor_audio = AudioExtractor(config)
        self.feature_extractor_video = VideoExtractor(config)
        fused_dim = config.embed_dim * (2 if config.modality_fuse == "concat" else 1)
        self.layer_norm = nn.LayerNorm(fused_dim)
        self.post_extract_proj = None
        if config.modality_fuse == "concat":
            self.post_extract_proj = nn.Linear(fused_dim, config.embed_dim)
        self.encoder = TransformerEncoder(config)

    @property
    def waveform(self) -> str:
        """What its audio features are made of, int16 or float: see features.audio_features."""
        return getattr(self.config, "waveform", "int16")  # exports of earlier versions do not say

    @property
    def dtype(self) -> torch.dtype:
        return self.layer_norm.weight.dtype

    def video_features(self, video: Tensor, seen: Tensor | None = None) -> Tensor:
        """Normalised grey frames, float [B, T, 88, 88] (media.video_input) -> [B, T, D].

        Padding must be zeros: then the frames of a padded clip get the features of the clip alone. What is not seen,
        where bool [B, T] `seen` is False, is like padding to its neighbours, and zeros itself, as a missing modality.
        """
        if seen is None:
            return self.feature_extractor_video(video.to(self.dtype))
        features = self.feature_extractor_video(video.masked_fill(~seen[..., None, None], 0).to(self.dtype))
        return features.masked_fill(~seen[..., None], 0)

    def audio_features(self, audio: Tensor) -> Tensor:
        """Stacked filterbank values, float [B, T, audio_dim] (media.audio_features) -> [B, T, D]."""
        return self.feature_extractor_audio(audio.to(self.dtype))

    def encode(
        self, audio: Tensor | None, video: Tensor | None, padding_mask: Tensor | None = None, layer: int | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Encodes one or both modalities.

        Args:
          audio: what audio_features returned, [B, T, D], or None: the modality is missing.
          video: what video_features returned, [B, T, D], or None: the modality is missing.
          padding_mask: bool [B, T], True at padded frames; each row needs a frame that is not padded.
          layer: the block, counted from 1, whose raw output is wanted too; 0 is the input of the transformer.

        Returns:
          ([B, T, D] of that layer or None, [B, T, D] of the last, normed by config). Padded frames hold no meaning.
        """
        if layer is not None and not 0 <= layer <= self.config.num_layers:
            raise ValueError(f"layer {layer}: the AV-HuBERT encoder has layers 0 to {self.config.num_layers}")
        x = self._fused(audio, video)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[..., None], 0)
        return self.encoder(x, padding_mask, layer)

    @torch.inference_mode()
    def encode_clips(
        self,
        audio: Sequence[np.ndarray | None] | None,
        video: Sequence[np.ndarray | None] | None,
        lengths: Sequence[int],
        modalities: Sequence[str],
        layer: int | None,
        seen: Sequence[np.ndarray] | None = None,
    ) -> dict[str, tuple[Tensor | None, Tensor]]:
        """Encodes a batch: each clip goes once through the frontends, then once for each modality.

        Args:
          audio: float32[T, audio_dim] of each clip; None is taken as zeros.
          video: float32[T, 88, 88] of each clip; None is taken as zeros.
          lengths: the clips' frames.
          modalities: some of av, audio and video.
          layer: see `encode`.
          seen: bool[T] of each clip, see `video_features`; None: all of its frames.

        Returns {modality: what `encode` returns}.
        """
        device, longest = self.layer_norm.weight.device, max(lengths)

        def padded(clips: Sequence[np.ndarray | None], *shape: int) -> Tensor:
            batch = torch.zeros(len(clips), longest, *shape)
            for row, clip in enumerate(clips):
                if clip is not None:
                    batch[row, : lengths[row]] = torch.from_numpy(clip)
            return batch.to(device)

        padding_mask = (torch.arange(longest) >= torch.tensor(lengths)[:, None]).to(device)
        heard = shown = None
        if {"av", "audio"} & set(modalities):
            heard = self.audio_features(padded(audio, self.config.audio_dim))
        if {"av", "video"} & set(modalities):
            frames = padded(video, 88, 88)
            # A CPU's caches hold the activations of one clip; a GPU is filled by all of them at once.
            size = 1 if device.type == "cpu" else len(frames)
            parts = [frames.split(size)]
            if seen is not None:
                parts.append((padded(seen) > 0).split(size))
            shown = torch.cat([self.video_features(*part) for part in zip(*parts, strict=True)])
        inputs = {"av": (heard, shown), "audio": (heard, None), "video": (None, shown)}
        return {name: self.encode(*inputs[name], padding_mask, layer) for name in modalities}

    def _fused(self, audio: Tensor | None, video: Tensor | None) -> Tensor:
        present = audio if audio is not None else video
        if present is None:
            raise ValueError("encode needs audio, video or both")
        audio = torch.zeros_like(present) if audio is None else audio
        video = torch.zeros_like(present) if video is None else video
        if self.post_extract_proj is None:
            return self.layer_norm(audio + video)
        return self.post_extract_proj(self.layer_norm(torch.cat([audio, video], dim=2)))
