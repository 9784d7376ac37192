"""Names of AV-HuBERT's weights, fairseq's and those of the Hugging Face class AVHubertModel: one table, read both ways.

Where in a file an encoder lies is found by its full set of names, since other models have names like some of them.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Collection

import torch

from convert.names import FEW, in_short
from viavsp_jax.models.avhubert.config import AVHubertConfig
from viavsp_jax.prepare.features.avhubert_torch import UNUSED_KEYS, AVHubert
from viavsp_jax.runtime.errors import InputError

_BLOCK = "encoder.layers.{layer}"
# fairseq's module and theirs; all others have one name.
MODULES = (
    ("encoder.pos_conv.0", "encoder.pos_conv_embed.conv"),
    (f"{_BLOCK}.self_attn", f"{_BLOCK}.attention"),
    (f"{_BLOCK}.self_attn_layer_norm", f"{_BLOCK}.layer_norm"),
    (f"{_BLOCK}.fc1", f"{_BLOCK}.feed_forward.intermediate_dense"),
    (f"{_BLOCK}.fc2", f"{_BLOCK}.feed_forward.output_dense"),
)
# How older and newer PyTorch name the parts of a weight norm, whatever the class.
WEIGHT_NORM = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))
FAIRSEQ, HUGGING_FACE = "fairseq", "AVHubertModel"
# Not in every encoder: of one way to fuse, of a width that changes in the first stage, of pre-training.
_OPTIONAL = ("post_extract_proj.", "feature_extractor_video.resnet.trunk.layer1.0.downsample.", *UNUSED_KEYS)
_MOST_PARTS = 8  # of any name
_NUMBER = re.compile(r"(?<=^encoder\.layers\.)\d{1,3}(?=\.)")


def _replaced(name: str, pairs: Collection[tuple[str, str]]) -> str:
    """A name with one dotted part of it replaced."""
    for old, new in pairs:
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _pattern(name: str) -> tuple[str, int | None]:
    """A name with {layer} in place of its block's number, and that number."""
    number = _NUMBER.search(name)
    return (_NUMBER.sub("{layer}", name), int(number[0])) if number else (name, None)


def older_spelling(name: str) -> str:
    """A name with weight_g and weight_v, however the weight norm's parts are spelled."""
    for older, newer in WEIGHT_NORM:
        if name.endswith(f".{newer}"):
            return name.removesuffix(newer) + older
    return name


def to_hugging_face(name: str) -> str:
    """fairseq's name of a weight → what AVHubertModel saves it as."""
    pattern, layer = _pattern(name)
    name = _replaced(pattern, MODULES)
    for older, newer in WEIGHT_NORM:
        if name.endswith(f".{older}"):
            name = name.removesuffix(older) + newer
    return name.format(layer=layer)


@functools.cache
def _tables() -> dict[str, dict[str, str]]:
    """For each form: all patterns of names, in the older spelling → fairseq's."""
    config = AVHubertConfig(num_layers=1, frontend_channels=1)  # so that every module is there that may be
    with torch.device("meta"):
        names = [*AVHubert(config).state_dict(), *UNUSED_KEYS]
    patterns = [_pattern(name)[0] for name in names]
    theirs = {_replaced(pattern, MODULES): pattern for pattern in patterns}
    return {FAIRSEQ: dict(zip(patterns, patterns, strict=True)), HUGGING_FACE: theirs}


@dataclasses.dataclass
class Located:
    """An encoder among the names of a file."""

    prefix: str
    form: str  # FAIRSEQ or HUGGING_FACE
    names: dict[str, str] = dataclasses.field(default_factory=dict)  # fairseq's name → that in the file
    twice: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # names in the file of one weight

    def missing(self) -> list[str]:
        """fairseq's names of the weights that every encoder has, and this one has not."""
        wanted = [x for x in _tables()[self.form].values() if not x.startswith(_OPTIONAL)]
        layers = {layer for name in self.names for _, layer in [_pattern(name)] if layer is not None}
        layers |= {*range(max(1, len(layers)))}
        expected = {name.format(layer=layer) for name in wanted for layer in layers}
        return sorted(expected - self.names.keys())


def locate(names: Collection[str], source: str) -> Located:
    """The encoder in a file with these names, under whatever prefix.

    Raises InputError, naming `source`, if there is none, a weight of it is missing or there twice, or there are two.
    """
    found: dict[tuple[str, str], Located] = {}
    for name in names:
        plain = older_spelling(name)
        for start in [0, *(dot.end() for dot in re.finditer(r"\.", plain))][-_MOST_PARTS:]:
            pattern, layer = _pattern(plain[start:])
            for form, table in _tables().items():
                if pattern in table:
                    one = found.setdefault((plain[:start], form), Located(plain[:start], form))
                    ours = table[pattern].format(layer=layer)
                    if ours in one.names:
                        one.twice.append((one.names[ours], name))
                    one.names[ours] = name
    whole = [one for one in found.values() if not one.missing()]
    if len(whole) > 1:
        places = sorted(f"{one.prefix or 'no prefix'} (names of {one.form})" for one in whole)
        raise InputError(f"{source} holds {len(whole)} encoders, under {' and '.join(places)}: expected one")
    if not whole:
        raise InputError(_without_encoder(found.values(), source))
    (one,) = whole
    if one.twice:
        raise InputError(f"{source} holds {' and '.join(one.twice[0])}, expected one of them")
    return one


def _without_encoder(found: Collection[Located], source: str) -> str:
    """What to say of a file in which no encoder is whole: what is missing, if most of one is there."""
    nearest = max(found, key=lambda one: len(one.names), default=None)
    if nearest is None or len(missing := nearest.missing()) > len(nearest.names):
        return f"{source} holds no AV-HuBERT encoder under any prefix"
    names = ", ".join(in_short({*missing}))
    return f"{source}: the encoder under {nearest.prefix or 'no prefix'} lacks weights, by fairseq's names: {names}"


def others(names: Collection[str], encoder: Located, source: str) -> str:
    """What else is in a file, in a few words; "" for nothing.

    Raises InputError for names inside the encoder that are none of its weights: it is of another kind then.
    """
    own = {name.split(".")[0] for name in encoder.names}
    groups, unknown = collections.Counter(), set()
    for name in {*names} - {*encoder.names.values()}:
        inside = name.removeprefix(encoder.prefix)
        if name.startswith(encoder.prefix) and inside.split(".")[0] in own:
            unknown.add(name)
        parts = name.split(".")[:-1] or [name]
        depth = next((i for i in range(1, len(parts)) if not encoder.prefix.startswith(".".join(parts[:i]) + ".")), 0)
        groups[".".join(parts[: depth or len(parts)])] += 1
    if unknown:
        raise InputError(f"{source}: the encoder has weights that are not AV-HuBERT's: {', '.join(in_short(unknown))}")
    shown = [f"{group} ({count})" for group, count in sorted(groups.items())]
    return ", ".join(shown[:FEW] + [f"and {len(shown) - FEW} more"] * (len(shown) > FEW))
