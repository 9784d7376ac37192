"""What a Hugging Face `config.json` says of a language model, as transformers understands it, or why it is none for us.

A family is a `model_type`. Whatever in a config would change the numbers and is not done here is refused, all of it in
one sentence.
"""

import dataclasses
import json
import math
from typing import Any, get_args

import transformers  # its parts are imported when they are used
from etils import epath

from viavsp_jax.models.llama import LlamaConfig
from viavsp_jax.models.rope import RopeKind, RopeScaling
from viavsp_jax.runtime.errors import InputError

# Our names of sizes, and those of config.json. It must hold the first five: transformers would take some model's own.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
_SIZES_THAT_FOLLOW = {"num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_MOST_LAYERS = 10_000  # transformers' classes and ours hold an entry for each
# What else transformers' class resolves for every family. No other field of a stranger's file gets to it: some take
# all memory.
_RESOLVED = (
    *_SIZES.values(),
    *_SIZES_THAT_FOLLOW.values(),
    *("rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"),
    *("rope_parameters", "rope_scaling", "rope_theta"),
)
# Fields of every family that no number follows from when a frozen model is run.
_HARMLESS = (
    "initializer_range use_cache pad_token_id bos_token_id eos_token_id pretraining_tp attention_dropout"
).split()
# Fields that transformers obeys for any model, and what they are where nothing is asked for.
_OBEYED = {
    "is_causal": True,
    "is_encoder_decoder": False,
    "sliding_window": None,
    "attention_chunk_size": None,
    "layer_types": None,
    "per_layer_config": None,
    "kv_sharing_modes": None,
    "attribute_map": None,
    "fusion_config": None,
    "transformers_weights": None,
    "configuration_files": None,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_Problems = list[str]


@dataclasses.dataclass(frozen=True)
class _Family:
    """Where a family differs from the others."""

    theirs: str  # transformers' class
    own: tuple[str, ...] = ()  # fields of config.json that only some families have
    activation: tuple[str, str] = ("hidden_act", "silu")  # the field, and what it has to be
    always_biased: str = ""  # projections, by their letters
    qk_norm: bool = False
    gemma: bool = False


_WINDOWS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_FAMILIES = {
    "llama": _Family("LlamaConfig", ("hidden_act", "attention_bias", "mlp_bias")),
    "mistral": _Family("MistralConfig", ("hidden_act", "sliding_window")),
    "qwen2": _Family("Qwen2Config", ("hidden_act", *_WINDOWS), always_biased="qkv"),
    "qwen3": _Family("Qwen3Config", ("hidden_act", "attention_bias", *_WINDOWS), qk_norm=True),
    "gemma3_text": _Family(
        "Gemma3TextConfig",
        ("hidden_activation", "attention_bias", "query_pre_attn_scalar", "sliding_window", "layer_types",
         "sliding_window_pattern", "rope_local_base_freq", "use_bidirectional_attention"),
        ("hidden_activation", "gelu_pytorch_tanh"), qk_norm=True, gemma=True,
    ),
}  # fmt: skip


def llama_config(folder: epath.PathLike) -> LlamaConfig:
    """Shape of the language model in a folder with a Hugging Face `config.json`.

    Raises InputError that lists all that is not supported.
    """
    path = epath.Path(folder) / "config.json"
    given = read_config(path)
    family = _FAMILIES[given["model_type"]]
    _check_sizes(given, path)
    problems = _not_obeyed(given, family)
    try:
        known = {*_RESOLVED, *family.own}
        theirs = getattr(transformers, family.theirs)(**{name: given[name] for name in known if name in given})
        shape, more = _shape(theirs, family)
    except Exception as error:  # what transformers raises for a field of another type is no kind of it
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError("; ".join([f"{path} is not the config of a language model: {reason}", *problems])) from None
    if problems := [*problems, *more, *_impossible(shape)]:
        raise InputError(f"{path}: {'; '.join(problems)}")
    return shape


def read_config(path: epath.Path) -> dict[str, Any]:
    """The fields of a config.json; InputError if it is not that of a language model of a family that is supported."""
    if not path.exists():
        raise InputError(
            f"{path} does not exist: expected a folder with a language model, as python -m convert.from_hf makes it"
        )
    try:
        given = json.loads(path.read_bytes())
        if (model := given.get("model_type")) not in _FAMILIES:
            names = ", ".join(_FAMILIES)
            raise InputError(f"{path}: model_type is {repr(model)[:99]}, expected one of {names}{_inside(given)}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not the config of a language model: {error!r}") from None
    if method := given.get("quantization_config"):
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise InputError(
            f"{path}: the weights are quantized (quantization_config: {str(method)[:99]}), expected plain ones: load "
            "the model with transformers, call its dequantize() and write it again with save_pretrained"
        )
    return given


def _inside(given: dict[str, Any]) -> str:
    """What a model of several parts holds: its language model may be one for us, on its own."""
    text = given.get("text_config") or given.get("llm_config")
    if not isinstance(text, dict):
        return ""
    return (
        f" (it is a model of several parts with a {text.get('model_type')!r} inside: write its language model to a "
        "folder of its own with save_pretrained)"
    )


def _check_sizes(given: dict[str, Any], path: epath.Path) -> None:
    """InputError for sizes that no model has."""
    if missing := [name for name in _SIZES.values() if name not in given]:
        raise InputError(f"{path} is not the config of a language model: it lacks {', '.join(missing)}")
    for ours, name in (_SIZES | _SIZES_THAT_FOLLOW).items():
        value = given.get(name)
        if ours in _SIZES_THAT_FOLLOW and value is None:
            continue
        if not (type(value) is int and 0 < value < 2**31):
            raise InputError(f"{path}: {ours} is {repr(value)[:99]}, expected a positive whole number")
    if (layers := given["num_hidden_layers"]) > _MOST_LAYERS:
        raise InputError(f"{path}: num_layers is {layers}, expected at most {_MOST_LAYERS}")
    heads, groups = given["num_attention_heads"], given.get("num_key_value_heads") or 1
    if heads % groups:
        raise InputError(f"{path}: num_heads is {heads}, expected a multiple of num_kv_heads {groups}")
    if (given.get("head_dim") or 0) % 2:
        raise InputError(f"{path}: head_dim is {given['head_dim']}, expected an even number")


def _only(name: str, found: Any, wanted: Any) -> _Problems:
    return [] if found == wanted else [f"{name} is {repr(found)[:99]}, only {wanted!r} is supported"]


def _not_obeyed(given: dict[str, Any], family: _Family) -> _Problems:
    """Fields that are there, that transformers reads, and that nothing here follows."""
    problems = []
    for name, wanted in _OBEYED.items():
        if name in given and name not in family.own:
            problems += _only(name, given[name], wanted)
    of_all = {*transformers.PretrainedConfig.__dataclass_fields__, *_RESOLVED, *_HARMLESS, *family.own}
    for name, field in getattr(transformers, family.theirs).__dataclass_fields__.items():
        if name in given and name not in of_all:
            problems += _only(name, given[name], field.default)
    return problems


def _shape(theirs: Any, family: _Family) -> tuple[LlamaConfig, _Problems]:
    """What transformers' class resolved, and what of it is not supported."""
    field, wanted = family.activation
    act = {"swish": "silu"}.get(getattr(theirs, field), getattr(theirs, field))
    problems = _only(field, act, wanted)
    windows, more = _windows(theirs, family)
    problems += more
    ropes = theirs.rope_parameters if family.gemma else {_FULL: theirs.rope_parameters}
    problems += [problem for rope in ropes.values() for problem in _refused_rope(rope, of_gemma=family.gemma)]
    biased = (*family.always_biased, *("qkvo" if getattr(theirs, "attention_bias", False) else ""))
    biased += ("gate", "up", "down") if getattr(theirs, "mlp_bias", False) else ()
    shape = LlamaConfig(
        **{ours: getattr(theirs, name) for ours, name in _SIZES.items()},
        num_kv_heads=theirs.num_key_value_heads,
        head_dim=getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        rope_theta=float(ropes[_FULL]["rope_theta"]),
        rms_norm_eps=theirs.rms_norm_eps,
        tie_word_embeddings=theirs.tie_word_embeddings,
        rope_scaling=RopeScaling() if problems else _scaling(ropes[_FULL], theirs.max_position_embeddings),
        biased=biased,
        qk_norm=family.qk_norm,
        windows=windows,
    )
    if family.gemma:
        problems += _only("use_bidirectional_attention", bool(theirs.use_bidirectional_attention), False)
        problems += _only("rope type of layers with a window", ropes[_SLIDING]["rope_type"], "default")
        shape = dataclasses.replace(
            shape,
            activation="gelu_tanh",
            unit_offset=True,
            post_norms=True,
            embedding_scale=shape.hidden_size**0.5,
            query_scale=theirs.query_pre_attn_scalar**-0.5,
            local_rope_theta=float(ropes[_SLIDING]["rope_theta"]),
        )
    return shape, problems


def _windows(theirs: Any, family: _Family) -> tuple[tuple[int | None, ...], _Problems]:
    """How many positions the tokens of each layer see; () if all see all."""
    window = theirs.sliding_window if "sliding_window" in family.own else None
    kinds = getattr(theirs, "layer_types", None) or [_FULL if window is None else _SLIDING] * theirs.num_hidden_layers
    if unknown := sorted({*kinds} - {_FULL, _SLIDING}):
        return (), [f"layer_types holds {', '.join(unknown)}, only {_FULL} and {_SLIDING} are supported"]
    if len(kinds) != theirs.num_hidden_layers:
        return (), [f"layer_types has {len(kinds)} entries, expected one for each of {theirs.num_hidden_layers} layers"]
    if _SLIDING not in kinds:
        return ((None,) * len(kinds) if family.gemma else ()), []
    if not (type(window) is int and window > 0):
        return (), [f"sliding_window is {window!r}, expected a positive whole number"]
    return tuple(window if kind == _SLIDING else None for kind in kinds), []


def _refused_rope(rope: dict[str, Any], of_gemma: bool) -> _Problems:
    """Why a rotary embedding cannot be computed here."""
    kind, kinds = rope["rope_type"], get_args(RopeKind)
    if kind not in kinds:
        return [f"rope type is {kind!r}, expected one of {', '.join(kinds)}"]
    problems = _only("partial_rotary_factor", rope.get("partial_rotary_factor") or 1.0, 1.0)
    if kind == "yarn" and of_gemma:
        problems.append("rope type is 'yarn', which no layers without a window of this family have")
    needed = {"linear": ("factor",), "yarn": ("original_max_position_embeddings",)}
    needed["llama3"] = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for name in needed.get(kind, ()):
        value = rope.get(name)
        if not (type(value) in (int, float) and 0 < value < math.inf):
            problems.append(f"{name} of the rope type {kind} is {repr(value)[:99]}, expected a number above 0")
    return problems


def _scaling(rope: dict[str, Any], longest: int) -> RopeScaling:
    """The parameters of a rotary embedding, with transformers' defaults; `longest` is max_position_embeddings."""
    kind, original = rope["rope_type"], rope.get("original_max_position_embeddings")
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(kind, float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(kind, float(rope["factor"]), original, rope["low_freq_factor"], rope["high_freq_factor"])
    factor = float(longest / original if rope.get("factor") is None else rope["factor"])

    def amplitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    scales = rope.get("mscale"), rope.get("mscale_all_dim")
    own = amplitude(scales[0]) / amplitude(scales[1]) if all(scales) else amplitude(1.0)
    given = rope.get("attention_factor")
    return RopeScaling(
        kind, factor, original, float(rope.get("beta_slow") or 1), float(rope.get("beta_fast") or 32),
        bool(rope.get("truncate", True)), own if given is None else float(given),
    )  # fmt: skip


def _impossible(shape: LlamaConfig) -> _Problems:
    """Values that no model has."""
    problems = []
    if shape.num_heads % shape.num_kv_heads:
        problems.append(f"num_heads is {shape.num_heads}, expected a multiple of num_kv_heads {shape.num_kv_heads}")
    if shape.head_dim % 2 or not shape.head_dim:
        problems.append(f"head_dim is {shape.head_dim}, expected an even number")
    if not 0 <= shape.rms_norm_eps < math.inf:
        problems.append(f"rms_norm_eps is {shape.rms_norm_eps!r}, expected a number of at least 0")
    scaling = shape.rope_scaling
    for name, value in (("rope_theta", shape.rope_theta), ("rope factor", scaling.factor)):
        if not 0 < value < math.inf:
            problems.append(f"{name} is {value!r}, expected a number above 0")
    if scaling.kind == "llama3" and scaling.fast <= scaling.slow:
        problems.append(f"high_freq_factor is {scaling.fast!r}, expected more than low_freq_factor {scaling.slow!r}")
    return problems
