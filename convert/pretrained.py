"""Pre-trained AV-HuBERT encoders on their way from a checkpoint of any form to an encoder folder."""

import argparse
import dataclasses
import os
import re

import safetensors.torch
import torch
from etils import epath

from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.avhubert_torch import UNUSED_KEYS, encoder_from_weights, save_encoder
from viavsp_jax.runtime.errors import InputError
from viavsp_jax.runtime.options import new_folder, whole

# Weights of no use to the encoder; its header names the checkpoint as `source`.
PRETRAINING_FILE = "pretraining.safetensors"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a checkpoint holds of an encoder."""

    config: AVHubertConfig
    weights: dict[str, torch.Tensor]  # by fairseq's names; those of UNUSED_KEYS may be among them
    source: str  # the checkpoint's path


def first_blocks(encoder: Pretrained, layers: int | None) -> Pretrained:
    """The first `layers` blocks, whose output is not normed, or, for None, the encoder as it is.

    Raises InputError if there are not as many.
    """
    if layers is None:
        return encoder
    if layers > encoder.config.num_layers:
        raise InputError(
            f"{encoder.source} has {encoder.config.num_layers} blocks, expected --layers up to that, not {layers}"
        )
    weights = {name: x for name, x in encoder.weights.items() if _block(name) < layers}
    config = dataclasses.replace(encoder.config, num_layers=layers, final_norm=False)
    return dataclasses.replace(encoder, config=config, weights=weights)


def _block(name: str) -> int:
    """The number of the block that a weight is of, from 0 on; -1 for what is before and behind them."""
    found = re.match(r"encoder\.layers\.(\d{1,3})\.", name)
    return int(found[1]) if found else -1


def write_encoder(output: epath.PathLike, encoder: Pretrained, dtype: torch.dtype) -> None:
    """Writes an encoder's folder.

    Raises InputError, naming the source, that lists every missing, unknown or misshapen weight, and for values that
    are not finite in `dtype`.
    """
    used = {name: tensor for name, tensor in encoder.weights.items() if name not in UNUSED_KEYS}
    model = encoder_from_weights(encoder.config, used, encoder.source)
    unused = {name: x.to(dtype).contiguous() for name, x in encoder.weights.items() if name in UNUSED_KEYS}
    if bad := [name for name, x in unused.items() if not torch.isfinite(x).all()]:
        raise InputError(f"{encoder.source}: {bad[0]} is not finite as {dtype}")
    save_encoder(model, output, dtype)
    file = safetensors.torch.save(unused, {"source": os.path.abspath(encoder.source)})
    (epath.Path(output) / PRETRAINING_FILE).write_bytes(file)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every conversion to an encoder folder."""
    parser.add_argument("--output", type=new_folder("--output"), required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float32", help="of the weights (default: %(default)s)"
    )
    parser.add_argument("--layers", type=whole("--layers", 1), help="blocks to keep (default: all)")
