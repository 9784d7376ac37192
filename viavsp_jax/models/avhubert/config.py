"""Shape and training of an AV-HuBERT encoder; shared by the PyTorch and the Flax model, so it imports neither."""

import dataclasses
from typing import Literal, get_args

MODALITY_FUSIONS = ("concat", "add")
# What BatchNorm normalises by in training: its running averages, or the statistics of each clip, which they follow.
BatchNormStatistics = Literal["running", "batch"]
# The samples that audio features are made of: see viavsp_jax/data/features.py.
Waveform = Literal["int16", "float"]
# Grey level statistics (of values scaled to 0..1) that AV-HuBERT was trained with.
VIDEO_MEAN, VIDEO_STD = 0.421, 0.165
# No encoder is near them; a config file with larger numbers would take hours to follow.
_MOST_LAYERS, _LARGEST = 256, 2**16


@dataclasses.dataclass(frozen=True)
class AVHubertConfig:
    """Sizes and variants of the encoder; the defaults are AV-HuBERT Large.

    Raises ValueError if a value is not usable.
    """

    embed_dim: int = 1024  # width of the transformer and of each modality's features
    num_layers: int = 24
    num_heads: int = 16
    ffn_dim: int = 4096
    audio_dim: int = 104  # stacked log filterbank values of one video frame
    layer_norm_first: bool = True  # pre-LN, normed after the last block; else post-LN, normed before the first
    modality_fuse: str = "concat"
    frontend_channels: int = 64  # output channels of the 3D convolution
    resnet_channels: tuple[int, ...] = (64, 128, 256, 512)  # the four stages, two blocks each
    final_norm: bool = True  # pre-LN: the last block's output is normed; not where blocks behind it were left out
    conv_pos: int = 128  # kernel of the positional convolution, in frames
    conv_pos_groups: int = 16
    waveform: Waveform = "int16"

    def __post_init__(self) -> None:
        channels = self.resnet_channels
        if not isinstance(channels, list | tuple):
            raise ValueError(f"AV-HuBERT config: resnet_channels must be a list of integers, not {channels!r}")
        object.__setattr__(self, "resnet_channels", tuple(channels))  # JSON has no tuples
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.type is int}
        sizes |= {f"resnet_channels[{i}]": size for i, size in enumerate(self.resnet_channels)}
        for name, size in sizes.items():
            most = _MOST_LAYERS if name == "num_layers" else _LARGEST
            if type(size) is not int or size < 1:
                raise ValueError(f"AV-HuBERT config: {name} must be a positive integer, not {size!r}")
            if size > most:
                raise ValueError(f"AV-HuBERT config: {name} must be at most {most}, not {size}")
        if len(self.resnet_channels) != 4:
            raise ValueError(f"AV-HuBERT config: resnet_channels must give 4 stages, not {list(self.resnet_channels)}")
        for name in ("layer_norm_first", "final_norm"):
            if type(value := getattr(self, name)) is not bool:
                raise ValueError(f"AV-HuBERT config: {name} must be true or false, not {value!r}")
        if self.modality_fuse not in MODALITY_FUSIONS:
            raise ValueError(
                f"AV-HuBERT config: modality_fuse must be in {MODALITY_FUSIONS}, not {self.modality_fuse!r}"
            )
        if self.waveform not in (known := get_args(Waveform)):
            raise ValueError(f"AV-HuBERT config: waveform must be in {known}, not {self.waveform!r}")
        for divisor in ("num_heads", "conv_pos_groups"):
            if self.embed_dim % getattr(self, divisor):
                raise ValueError(
                    f"AV-HuBERT config: embed_dim {self.embed_dim} must be a multiple of "
                    f"{divisor} {getattr(self, divisor)}"
                )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def fused_dim(self) -> int:
        """Width after the modalities are fused: 2 x embed_dim for concat, embed_dim for add."""
        return 2 * self.embed_dim if self.modality_fuse == "concat" else self.embed_dim


@dataclasses.dataclass(frozen=True)
class EncoderTraining:
    """What sets training apart from evaluation; the reference trains with 0.1, 0.1 and "batch".

    Raises ValueError if a value is not usable.
    """

    layer_drop: float = 0.0  # with what probability a block is skipped
    activation_dropout: float = 0.0  # of the feed-forward's hidden values
    batch_norm: BatchNormStatistics = "running"
    unroll: bool = False  # the loop over the clips of a row; for CPUs

    def __post_init__(self) -> None:
        for name in ("layer_drop", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"AV-HuBERT training: {name} must be in [0, 1), not {getattr(self, name)!r}")
        if self.batch_norm not in (known := get_args(BatchNormStatistics)):
            raise ValueError(f"AV-HuBERT training: batch_norm must be in {known}, not {self.batch_norm!r}")


PLAIN_TRAINING = EncoderTraining()
