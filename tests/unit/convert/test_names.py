"""Names that do not fit are summed up: by layers, and by what is too much or too little in front of them."""

import numpy as np
import pytest

from convert.names import MANY, check_names, tensors, wrong_shapes
from viavsp_jax.runtime.errors import InputError

LAYERS = 32
PARTS = ("input_layernorm.weight", "self_attn.q_proj.weight", "mlp.up_proj.weight")
NAMES = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} | {
    f"model.layers.{layer}.{part}" for layer in range(LAYERS) for part in PARTS
}


def said(expected, found):
    with pytest.raises(InputError) as caught:
        check_names(expected, found, "here")
    message = str(caught.value)
    assert message.startswith("here does not hold exactly the weights of its config; ") and len(message) < 1000
    return message.split("; ")[1:]


def test_weights_of_ours_without_a_name_are_listed():
    with pytest.raises(InputError, match="llm/gate, llm/layers/q/shift$"):
        tensors({"llm": {"layers": {"q": {"shift": np.zeros(3)}}, "gate": np.zeros(2), "embedding": np.zeros((2, 2))}})


@pytest.mark.parametrize("name", ["model.layers.31.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_buffers_that_follow_from_the_config_are_passed_over(name):
    check_names(["a"], ["a", name], "here")
    check_names([f"{name}.weight"], [f"{name}.weight"], "here")


@pytest.mark.parametrize("front", ["language_model.", "base_model.model.", "model.language_model."])
def test_something_in_front_of_all_names_is_said_once(front):
    wrong = f"{len(NAMES)} of its names would be right without '{front}' in front"
    assert said(NAMES, {front + name for name in NAMES}) == [wrong]
    more = {f"vision.{layer}.weight" for layer in range(9)} | {"projector"}
    assert said(NAMES, {front + name for name in NAMES} | more) == [
        wrong, "unknown: projector, vision.{0-8}.weight"
    ]  # fmt: skip


def test_something_missing_in_front_is_said_once():
    found = {name.removeprefix("model.") for name in NAMES}
    assert said(NAMES, found) == [f"{len(NAMES) - 1} of its names would be right with 'model.' in front"]
    assert said(NAMES, found - {"lm_head.weight"})[1:] == ["missing: lm_head.weight"]


def test_another_architecture_is_listed_by_layers():
    other = {f"transformer.h.{layer}.attn.c_attn.weight" for layer in range(12)} | {"transformer.wte.weight"}
    assert said(NAMES, other) == [
        f"it has none of the {len(NAMES)} names expected",
        "missing: lm_head.weight, model.embed_tokens.weight, "
        + ", ".join(f"model.layers.{{0-31}}.{part}" for part in sorted(PARTS))
        + ", model.norm.weight",
        "unknown: transformer.h.{0-11}.attn.c_attn.weight, transformer.wte.weight",
    ]


def test_every_layer_that_lacks_something_is_named():
    gone = {f"model.layers.{layer}.{PARTS[1]}" for layer in (0, 1, 2, 3, 5, 8, 9, 10, 31)} | {
        "model.layers.7.mlp.up_proj.weight"
    }
    assert said(NAMES, NAMES - gone) == [
        "missing: model.layers.7.mlp.up_proj.weight, model.layers.{0-3,5,8-10,31}.self_attn.q_proj.weight"
    ]


def test_few_names_are_listed_as_they_are():
    gone = sorted(f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(4, 12))
    assert said(NAMES, NAMES - set(gone)) == [f"missing: {', '.join(gone)}"]


def test_what_is_not_listed_is_counted():
    found = NAMES | {f"more{number}" for number in range(1000)}
    (unknown,) = said(NAMES, found)
    listed = unknown.removeprefix("unknown: ").split(", ")
    assert len(listed) == MANY + 1 and listed[-1] == f"and {1000 - MANY} more" and set(listed[:-1]) < found


def test_equal_layers_of_a_wrong_shape_are_one():
    expected = {f"layers.{layer}.{part}": (4, 8) for layer in range(LAYERS) for part in "kq"} | {"norm": (8,)}
    found = {name: (2, 8) if name.endswith("k") else shape for name, shape in expected.items()} | {"norm": [9]}
    assert wrong_shapes(expected, found) == [
        "layers.{0-31}.k is [2, 8] and not [4, 8]", "norm is [9] and not [8]"
    ]  # fmt: skip
    assert wrong_shapes(expected, expected) == []
