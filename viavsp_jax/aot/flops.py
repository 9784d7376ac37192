"""Floating-point operations, by count: of a whole program, and of the part of its work that is useful.

Only matrix products and convolutions count, with 2 operations for each multiplication and addition, as in
a chip's peak.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from viavsp_jax.data.packing import INSTRUCTION
from viavsp_jax.models.llama import LlamaConfig

OF_TEXTS = ("segment_ids", "positions", "label_index", "weights")  # what `texts_of` looks at in a row


def of_program(jaxpr: core.Jaxpr, steps: int = 1) -> int:
    """What all devices together execute: padding, recomputation and masked-out tiles of a kernel included.

    The body of a scan counts as often as it runs, which XLA's own cost analysis does not do. A loop whose end depends
    on data counts `steps` times, and of several branches the most expensive one.
    """
    return sum(_of_equation(equation, steps) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn, steps: int) -> int:
    parameters, name = equation.params, equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        # Of the kernel, each output channel has its part. Zeros put between the inputs are not multiplied.
        kernel, (_, (out_channels, *_), _) = equation.invars[1].aval.shape, parameters["dimension_numbers"]
        summed = math.prod(kernel) // kernel[out_channels]
        return 2 * math.prod(equation.outvars[0].aval.shape) * summed // math.prod(parameters["lhs_dilation"])
    inner = [of_program(jaxpr, steps) for jaxpr in jaxprs(parameters)]
    if name == "cond":
        return max(inner)
    return sum(inner) * repetitions(name, parameters, steps)


def repetitions(name: str, parameters: dict[str, Any], steps: int) -> int:
    """How often the bodies of an equation run."""
    match name:
        case "scan":
            return parameters["length"]
        case "while":
            return steps
        case "pallas_call":
            return math.prod(parameters["grid_mapping"].grid)
        case "shard_map":  # shapes inside are those of one device
            return math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
    return 1


def jaxprs(parameters: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Those that an equation runs."""
    for value in parameters.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def texts_of(
    segment_ids: np.ndarray, positions: np.ndarray, label_index: np.ndarray, weights: np.ndarray
) -> list[tuple[range, int]]:
    """(positions, label tokens) of the instruction of a row, which has none, then of its utterances.

    Of the row's int32[S] `segment_ids` and `positions`, int32[L] `label_index` and float32[L] `weights`.
    """
    labels, texts = np.bincount(segment_ids[label_index[weights > 0]], minlength=segment_ids.max() + 1), []
    for segment in range(INSTRUCTION, segment_ids.max() + 1):
        own = positions[segment_ids == segment]
        texts.append((range(own[0], own[-1] + 1), int(labels[segment])))
    return texts


def useful_in_training(llama: LlamaConfig, texts: Iterable[tuple[range, int]]) -> int:
    """Of an update on texts with (positions, label tokens), with frozen weights.

    A text is the instruction of a row, from 0 on and without labels, or an utterance behind it, which sees it too.

    4 for each weight of the language model that a token uses: 2 forward, 2 to the activations backward; the head and
    what follows attention in the last layer at label positions only; nothing for looking up an embedding. Attention
    counts three times its forward pass, to positions that are seen. Adapters and projector, under 1 % where they are
    those of the reference, are left out.
    """
    texts = list(texts)
    positions, labels = sum(len(one) for one, _ in texts), sum(labels for _, labels in texts)
    at_labels = llama.hidden_size * (llama.num_heads * llama.head_dim + 3 * llama.intermediate_size)
    products = _layer_weights(llama) * positions - at_labels * (positions - labels) + _head_weights(llama) * labels
    return 4 * products + 3 * sum(_attention(llama, one) for one, _ in texts)


def useful_in_decoding(llama: LlamaConfig, clips: Iterable[tuple[int, int]], beams: int) -> int:
    """Of decoding clips of so many (prompt positions, generated tokens): the forward pass, the first token once a clip.

    The last token is generated, never read.
    """
    total = 0
    for prompt, generated in clips:
        read = beams * (generated - 1)
        total += 2 * (_layer_weights(llama) * (prompt + read) + _head_weights(llama) * (1 + read))
        total += _attention(llama, range(prompt)) + beams * _attention(llama, range(prompt, prompt + generated - 1))
    return total


def _layer_weights(llama: LlamaConfig) -> int:
    """Weights of all layers that a token is multiplied by."""
    attention = 2 * llama.hidden_size * llama.head_dim * (llama.num_heads + llama.num_kv_heads)
    return llama.num_layers * (attention + 3 * llama.hidden_size * llama.intermediate_size)


def _head_weights(llama: LlamaConfig) -> int:
    return llama.hidden_size * llama.vocab_size


def _attention(llama: LlamaConfig, positions: Sequence[int]) -> int:
    """Forward pass of queries at these positions of one text, in all layers.

    Each sees itself and what is before, in a layer with a window no further back than that.
    """
    windows = llama.windows or (None,) * llama.num_layers
    seen = {window: sum(min(position + 1, window or position + 1) for position in positions) for window in {*windows}}
    return 4 * sum(seen[window] for window in windows) * llama.num_heads * llama.head_dim
