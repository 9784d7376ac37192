"""Names of weights, here, in Hugging Face files and in the reference's: one table, read in both directions.

Letters: N layers (stacked on axis 0 here), I input width, O output width, R rank, E encoder width, D LLM width.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from types import EllipsisType
from typing import Any

import numpy as np
from flax import traverse_util

from viavsp_jax.models.lora import LoRAConfig
from viavsp_jax.runtime.errors import InputError

Tree = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]  # by name

_LAYER = "model.layers.{layer}."
_ADAPTED = "base_model.model.model.layers.{layer}."

# Projections of a layer, here and there.
_PROJECTIONS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
# The same of norms. LLaMA's second norm stands before its feed-forward layers, Gemma's behind attention.
_NORMS = {
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "attention_out_norm": "post_attention_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_in_norm": "pre_feedforward_layernorm", "ffn_out_norm": "post_feedforward_layernorm",
}  # fmt: skip
_ATTENTION = tuple(name for name, theirs in _PROJECTIONS.items() if theirs.startswith("self_attn."))


def _projection(name: str) -> Iterator[tuple[str, str, bool]]:
    """The lines of a projection's weights."""
    yield f"llm/layers/{name}/kernel", f"{_LAYER}{_PROJECTIONS[name]}.weight", True
    yield f"llm/layers/{name}/bias", f"{_LAYER}{_PROJECTIONS[name]}.bias", False


# Ours, theirs, and whether the matrix is transposed: [.., I, O] here, PyTorch's [O, I] there. Names with {layer}
# are one tensor for each layer there and one stack [N, ...] here. The order is that of the reference's modules.
TABLE = (
    ("llm/embedding", "model.embed_tokens.weight", False),
    ("llm/layers/attention_norm/scale", _LAYER + "input_layernorm.weight", False),
    *(line for name in _ATTENTION for line in _projection(name)),
    *((f"llm/layers/{ours}/scale", f"{_LAYER}{theirs}.weight", False) for ours, theirs in _NORMS.items()),
    *(line for name in _PROJECTIONS if name not in _ATTENTION for line in _projection(name)),
    ("llm/final_norm/scale", "model.norm.weight", False),
    ("llm/head", "lm_head.weight", True),
    *(
        (f"llm/layers/{name}/lora/{ours}", f"{_ADAPTED}{theirs}.lora_{ours.upper()}.weight", True)
        for name, theirs in _PROJECTIONS.items()
        for ours in "ab"
    ),
    ("projector/kernel", "avfeat_to_llm.weight", True),
    ("projector/bias", "avfeat_to_llm.bias", False),
)

# Where the reference keeps the language model, its adapters included, and the encoder.
REFERENCE_LLM = "decoder.base_model.model."
REFERENCE_ENCODER = "encoder.w2v_model."

# The parts of the encoder's names in the order of the reference's modules: right among the parts of any one module.
_ENCODER_PARTS = (
    "mask_emb label_embs_concat feature_extractor_audio feature_extractor_video "
    "resnet frontend3D trunk layer1 layer2 layer3 layer4 conv1 bn1 relu1 relu2 conv2 bn2 downsample proj "
    "post_extract_proj encoder pos_conv layers self_attn k_proj v_proj q_proj out_proj self_attn_layer_norm fc1 fc2 "
    "final_layer_norm layer_norm weight bias weight_g weight_v running_mean running_var num_batches_tracked"
).split()

_LINES = {ours: line for line, (ours, _, _) in enumerate(TABLE)}
_WITH_ADAPTER = {f"llm/layers/{name}/kernel" for name in LoRAConfig().targets}  # in the reference

# Buffers that older versions of transformers saved and that follow from the config.
IGNORED = re.compile(r"(.+\.)?rotary_emb\.inv_freq")

# Up to so many names are listed one by one; and no more than so many at all.
FEW, MANY = 8, 40
# A layer's number in a name.
_NUMBER = re.compile(r"(?<=\.)\d{1,9}(?=\.)")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file for PyTorch, and where it lies in ours."""

    name: str
    reference_name: str
    shape: tuple[int, ...]  # there
    path: str  # ours
    index: int | EllipsisType  # its layer in the stack; `...` when not stacked
    axes: tuple[int, ...] | None  # which of theirs ours are; None: the same

    def to_ours(self, value: np.ndarray) -> np.ndarray:
        return value if self.axes is None else value.transpose(self.axes)

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        return value if self.axes is None else value.transpose(np.argsort(self.axes))


def reference_order(tensor: Tensor) -> tuple:
    """Sorts tensors as the reference's modules hold them: layer by layer, the projector at the end."""
    layer = -1 if tensor.index is ... else tensor.index
    return tensor.path.startswith("projector/"), layer, _LINES[tensor.path]


def encoder_order(name: str) -> list[int]:
    """Sorts the encoder's weights, by names without REFERENCE_ENCODER, as the reference's modules hold them.

    Its optimizer knows them by their place in this order only.
    """
    return [int(part) if part.isdecimal() else _ENCODER_PARTS.index(part) for part in name.split(".")]


def flatten(tree: Tree) -> dict[str, Any]:
    """Nested dict → our paths."""
    return traverse_util.flatten_dict(tree, sep="/")


def tensors(abstract: Tree) -> list[Tensor]:
    """All Hugging Face tensors that hold the weights of `abstract`, a nested dict of things with a shape.

    Raises InputError that lists all our paths without a line in the table.
    """
    table = {ours: (theirs, (1, 0) if transposed else None) for ours, theirs, transposed in TABLE}
    return located(abstract, table, _reference_name, "a Hugging Face name")


def _reference_name(path: str, name: str) -> str:
    """In the reference the language model is peft's model in memory, not peft's file."""
    if "/lora/" in path:
        return f"decoder.{name.removesuffix('weight')}default.weight"
    if not path.startswith("llm/"):
        return name
    module, _, weight = name.rpartition(".")
    return f"{REFERENCE_LLM}{module}.{'base_layer.' if path in _WITH_ADAPTER else ''}{weight}"


def located(
    abstract: Tree,
    table: dict[str, tuple[str, tuple[int, ...] | None]],
    reference_name: Callable[[str, str], str],
    what: str,
) -> list[Tensor]:
    """All tensors that hold the weights of `abstract`, a nested dict of things with a shape.

    Args:
      table: by our path, their name, with {layer} where ours is a stack, and the axes of `Tensor`.
      reference_name: makes it of our path and their name.

    Raises InputError that lists all our paths without a line in the table, which is without `what`.
    """
    flat = flatten(abstract)
    if unknown := sorted(flat.keys() - table.keys()):
        raise InputError(f"weights without {what}: {', '.join(unknown)}")
    found = []
    for path, value in flat.items():
        pattern, axes = table[path]
        stacked = "{layer}" in pattern
        shape = value.shape[1:] if stacked else value.shape
        shape = tuple(shape) if axes is None else tuple(shape[axis] for axis in np.argsort(axes))
        for index in range(value.shape[0]) if stacked else [...]:
            name = pattern.format(layer=index)
            found.append(Tensor(name, reference_name(path, name), shape, path, index, axes))
    return found


def in_their_layout(weights: Tree, wanted: Iterable[Tensor]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The wanted ones of our weights, in C order."""
    flat = flatten(weights)
    for tensor in wanted:
        yield tensor, np.asarray(tensor.to_theirs(np.asarray(flat[tensor.path])[tensor.index]), order="C")


def check_shapes(expected: Shapes, found: Shapes, where: str, but: str) -> None:
    """Raises InputError that lists all names of `found` that are missing or unknown, else all shapes that are wrong.

    `but` says of what is called `where` what wrong shapes mean.
    """
    check_names(expected, found, where)
    if wrong := wrong_shapes(expected, found):
        raise InputError(f"{where} {but}: {'; '.join(wrong)}")


def check_names(expected: Collection[str], found: Collection[str], where: str) -> None:
    """Raises InputError that names all missing and all unknown names at once.

    What is common to many of them is said once: something in front that is too much or too little, and their layers.
    """
    expected = set(expected)
    missing = expected - set(found)
    unknown = {name for name in set(found) - expected if not IGNORED.fullmatch(name)}
    if not (missing or unknown):
        return
    problems = []
    for word, shorter, longer in (("without", missing, unknown), ("with", unknown, missing)):
        front, explained = _front(shorter, longer)
        if len(explained) > FEW:
            problems = [f"{len(explained)} of its names would be right {word} {front!r} in front"]
            missing, unknown = (names - explained - {front + x for x in explained} for names in (missing, unknown))
            break
    else:
        if len(missing) == len(expected) > FEW:
            problems = [f"it has none of the {len(expected)} names expected"]
    lists = (("missing", missing), ("unknown", unknown))
    problems += [f"{what}: {', '.join(in_short(names))}" for what, names in lists if names]
    raise InputError(f"{where} does not hold exactly the weights of its config; {'; '.join(problems)}")


def wrong_shapes(expected: Shapes, found: Shapes) -> list[str]:
    """What to say of tensors that have other shapes than expected; `found` has all names. Equal layers are one."""
    groups = collections.defaultdict(set)
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            groups[f"is {list(found[name])} and not {list(shape)}"].add(name)
    return [f"{name} {what}" for what, names in groups.items() for name in in_short(names)]


def _front(shorter: set[str], longer: set[str]) -> tuple[str, set[str]]:
    """What stands most often before a shorter name in a longer one, and the shorter names that it stands before."""
    fronts = collections.defaultdict(set)
    for name in longer:
        for dot in re.finditer(r"\.", name):
            if (rest := name[dot.end() :]) in shorter:
                fronts[name[: dot.end()]].add(rest)
    return max(fronts.items(), key=lambda item: (len(item[1]), item[0]), default=("", set()))


def in_short(names: set[str]) -> list[str]:
    """Few names as they are, in order; of many, those that differ in the layer's number alone as one."""
    if len(names) <= FEW:
        return sorted(names)
    groups = collections.defaultdict(list)
    for name in names:
        number = _NUMBER.search(name)
        before, after = (name[: number.start()], name[number.end() :]) if number else (name, "")
        groups[before, after].append(number and number.group())
    short = sorted(before + _ranges(numbers) + after for (before, after), numbers in groups.items())
    more = len(short) - MANY
    return short if more <= 0 else [*short[:MANY], f"and {more} more"]


def _ranges(numbers: list[str | None]) -> str:
    """ "7" for one number, "{0-3,5}" for several; an empty text for a name without one."""
    if len(numbers) == 1:
        return numbers[0] or ""
    runs = []
    for number in sorted(map(int, numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs) + "}"
