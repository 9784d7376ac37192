"""Converts a pre-trained AV-HuBERT encoder of any form to an encoder folder: config.json + model.safetensors.

    python -m convert.from_avhubert SOURCE --output DIR [--dtype float16] [--layers N] [--waveform int16|float]

SOURCE is a fairseq checkpoint (.pt), or a Hugging Face folder or one file of weights with config.json beside it:
AVHubertModel alone or inside a larger model (AVSRCocktail's, MuAViC's, any other), also with fairseq's names.
--layers is as in convert.from_fairseq. --waveform says what the audio features are made of: int16 values, cut to the
pictures' length as rows of the filterbank, as fairseq's models are trained, or samples of -1 to 1, cut before it.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import get_args

import torch
from etils import epath

from convert import from_fairseq, hf_avhubert
from convert.checkpoints import is_fairseq
from convert.pretrained import Pretrained, add_options, first_blocks, write_encoder
from viavsp_jax.models.avhubert.config import Waveform
from viavsp_jax.runtime.errors import InputError, reported_to_user


def read_pretrained(source: epath.PathLike) -> Pretrained:
    """The encoder of a source of any form. Raises InputError if it holds none."""
    path = epath.Path(source)
    if not path.exists():
        raise InputError(f"{source}: no such file or folder, expected an AV-HuBERT encoder")
    if path.is_file() and path.suffix != ".safetensors" and is_fairseq(path):
        return from_fairseq.read_pretrained(source)
    return hf_avhubert.read_pretrained(pathlib.Path(source))


def convert(
    source: epath.PathLike,
    output: epath.PathLike,
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
    waveform: Waveform | None = None,
) -> None:
    """Writes the folder that avhubert_torch.load_encoder reads; prints what was read and how it is to hear.

    Raises InputError if the source is not usable, or a weight does not fit `dtype`.
    """
    if epath.Path(source).is_dir() and epath.Path(output).resolve() == epath.Path(source).resolve():
        raise InputError(f"{output} is the source itself: give another --output")
    encoder = read_pretrained(source)
    config = dataclasses.replace(encoder.config, waveform=waveform or encoder.config.waveform)
    write_encoder(output, first_blocks(dataclasses.replace(encoder, config=config), layers), dtype)
    print(f"wrote {output}: audio features of {config.waveform} samples; --waveform changes that")


@reported_to_user()
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m convert.from_avhubert", description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="SOURCE", help="fairseq checkpoint, Hugging Face folder or file of weights")
    add_options(parser)
    parser.add_argument(
        "--waveform",
        choices=get_args(Waveform),
        help="samples that audio features are made of (default: float for AVHubertModel's form, int16 for fairseq's)",
    )
    args = parser.parse_args(argv)
    convert(args.source, args.output, getattr(torch, args.dtype), args.layers, args.waveform)


if __name__ == "__main__":
    main()
