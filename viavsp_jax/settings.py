"""What every setting may be: one table, by which a config is checked before anything else is done.

configs/base.py lists the same settings with their defaults and says what they mean.
"""

import dataclasses
import difflib
import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import ml_collections

from configs import base
from viavsp_jax.data.compression import EXPECTED, Compression, split_name
from viavsp_jax.data.features import NUM_FILTERS
from viavsp_jax.data.units import MOST
from viavsp_jax.models.avhubert.config import BatchNormStatistics
from viavsp_jax.models.llama import Remat
from viavsp_jax.models.lora import PROJECTIONS
from viavsp_jax.models.quantize import Quantization
from viavsp_jax.optimizer import PARTS, Name, Schedule
from viavsp_jax.runtime.errors import InputError, InputErrors
from viavsp_jax.runtime.run_info import flat

BestBy = Literal["accuracy", "wer"]  # what tells the best checkpoint

MOST_SEED = 2**32 - 1  # of Grain's shuffle
DTYPES = ("float32", "bfloat16")  # that a model computes in
MAX_BEAMS = 200  # of a search: its memory and time grow with their square
MOST_COUNT = 2**31 - 1  # counts are int32 on the devices


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a value has to be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int = MOST_COUNT) -> Rule:
    """A whole number; True and False are none."""
    bounds = f"of at least {least}" if most == MOST_COUNT else f"from {least} to {most}"
    return Rule(f"a whole number {bounds}", lambda x: type(x) is int and least <= x <= most)


def number(expected: str, holds: Callable[[float], bool]) -> Rule:
    """A finite number."""
    return Rule(f"a number {expected}", lambda x: type(x) in (int, float) and math.isfinite(x) and holds(x))


def one_of(*choices: Any) -> Rule:
    """One of a few values; 1 is not taken for True."""
    words = [str(choice) for choice in choices]
    return Rule(
        f"{', '.join(words[:-1])} or {words[-1]}", lambda x: any(type(x) is type(y) and x == y for y in choices)
    )


def each(rule: Rule, least: int = 1) -> Rule:
    """A tuple of so many values at least."""
    some = f"a tuple of at least {least}, each " if least else "a tuple, each "
    return Rule(
        some + rule.expected, lambda x: type(x) in (tuple, list) and len(x) >= least and all(map(rule.holds, x))
    )


def some_of(*choices: str) -> Rule:
    """A tuple of some of a few words, at least one."""
    return Rule(
        f"a tuple of different ones of {', '.join(choices)}",
        lambda x: type(x) in (tuple, list) and len(x) == len({*map(str, x)} & {*choices}) > 0,
    )


FLAG = one_of(True, False)
TEXT = Rule("text", lambda x: type(x) is str)
NAME = Rule("the name of a folder", lambda x: type(x) is str and bool(re.fullmatch(r"[^/\s]+", x)))
FOLDER = Rule("a folder", lambda x: type(x) is str and bool(x.strip()) and not x.endswith("/"))
WORD = Rule("text that is not empty", lambda x: type(x) is str and x.strip() != "")
END = Rule("a token, or nothing for the tokenizer's own", lambda x: type(x) is str and x.strip() == x)
FUNCTION = Rule("a function as MODULE:NAME", lambda x: type(x) is str and bool(re.fullmatch(r"[\w.]+:\w+", x)))
INSTRUCTION = Rule(
    "nothing for the reference's, or text in which braces stand around source and target alone",
    lambda x: x == "" or WORD.holds(x) and not re.search("[{}]", re.sub("{(source|target)}", "", x)),
)
COMPRESSION = Rule(EXPECTED, lambda x: type(x) is str and _is_compression(x))
ABOVE_0 = number("above 0", lambda x: x > 0)
AT_LEAST_0 = number("of at least 0", lambda x: x >= 0)
ANY_NUMBER = number("that is finite", lambda x: True)
SHARE = number("from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_1 = number("from 0 to less than 1", lambda x: 0 <= x < 1)
COUNT, FROM_0 = whole(1), whole(0)
LENGTH = Rule(
    "a whole number of updates, or a share of all from 0.0 to 1.0",
    lambda x: FROM_0.holds(x) or (type(x) is float and 0 <= x <= 1),
)
AXIS = Rule("a whole number of at least 1, or -1 for what the others leave", lambda x: x == -1 or COUNT.holds(x))
ROWS = Rule("a whole number of at least 1, or -1 for what suits the devices", lambda x: x == -1 or COUNT.holds(x))
STEPS = Rule(
    "nothing, or the first and the last update to trace, as in 10,20",
    lambda x: type(x) in (tuple, list) and (not x or (len(x) == 2 and all(map(COUNT.holds, x)) and x[0] <= x[1])),
)

DECODING = {
    "max_new_tokens": COUNT,
    "num_beams": whole(1, MAX_BEAMS),
    "early_stopping": one_of(False, True, "never"),
    "min_new_tokens": FROM_0,
    "length_penalty": ANY_NUMBER,
    "repetition_penalty": ABOVE_0,
    "do_sample": FLAG,
    "top_k": FROM_0,
    "top_p": SHARE,
    "seed": whole(0, MOST_SEED),
}
TABLE = {
    "seed": whole(0, MOST_SEED),
    "dtype": one_of(*DTYPES),
    "updates": COUNT,
    "log_every": COUNT,
    "profile_steps": STEPS,
    "label_smoothing": BELOW_1,
    "init_from": TEXT,
    "trackers": each(FUNCTION, least=0),
    "train.parts": some_of(*PARTS),
    "remat": one_of(*get_args(Remat)),
    "device_rows": FROM_0,
    "llm.path": TEXT,
    "llm.end_token": END,
    "llm.quantization": one_of(*get_args(Quantization)),
    "prompt.instruction": INSTRUCTION,
    "prompt.chat": FLAG,
    "lora.rank": COUNT,
    "lora.alpha": ABOVE_0,
    "lora.dropout": BELOW_1,
    "lora.targets": some_of(*PROJECTIONS),
    "lora.rslora": FLAG,
    "encoder.train": FLAG,
    "encoder.path": TEXT,
    "encoder.freeze_updates": LENGTH,
    "encoder.batch_norm": one_of(*get_args(BatchNormStatistics)),
    "encoder.layer_drop": BELOW_1,
    "encoder.activation_dropout": BELOW_1,
    "ctc.weight": AT_LEAST_0,
    "ctc.units": whole(2, MOST),
    "ctc.width": COUNT,
    "data.path": TEXT,
    "data.train": each(FOLDER),
    "data.weights": each(ABOVE_0, least=0),
    "data.compression": each(COMPRESSION),
    "data.augment.noise.probability": SHARE,
    "data.augment.noise.kinds": each(WORD, least=0),
    "data.augment.noise.snr_db": each(ANY_NUMBER, least=0),
    "data.augment.noise.talkers": each(COUNT),
    "data.augment.drop_audio": SHARE,
    "data.augment.drop_video": SHARE,
    "data.augment.drop_frames.spans": FROM_0,
    "data.augment.drop_frames.frames": COUNT,
    "data.augment.mask.times": FROM_0,
    "data.augment.mask.frames": COUNT,
    "data.augment.mask.ranges": FROM_0,
    "data.augment.mask.bands": whole(1, NUM_FILTERS),
    "data.feature_width": COUNT,
    "data.rows": ROWS,
    "data.row.positions": COUNT,
    "data.row.frames": COUNT,
    "data.row.labels": COUNT,
    "data.row.clips": COUNT,
    "data.row.window": COUNT,
    "data.seconds.mean": ABOVE_0,
    "data.seconds.longest": ABOVE_0,
    "data.too_long": one_of("error", "skip"),
    "optimizer.name": one_of(*get_args(Name)),
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.clip_norm": AT_LEAST_0,
    "optimizer.schedule": one_of(*get_args(Schedule)),
    "optimizer.peak_lr": ABOVE_0,
    "optimizer.warmup_updates": LENGTH,
    "optimizer.hold_updates": LENGTH,
    "optimizer.decay_updates": LENGTH,
    "optimizer.b1": BELOW_1,
    "optimizer.b2": BELOW_1,
    "optimizer.eps": ABOVE_0,
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.tensor": AXIS,
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
    "checkpoint.best_by": one_of(*get_args(BestBy)),
    "checkpoint.patience": FROM_0,
    "samples.clips": FROM_0,
    "samples.max_new_tokens": COUNT,
    "evaluate.names": each(NAME),
    "evaluate.split": WORD,
    "evaluate.mapping": TEXT,
    "evaluate.rows": ROWS,
    "evaluate.bucket": COUNT,
    **{f"evaluate.decoding.{name}": rule for name, rule in DECODING.items()},
    "evaluate.decoding.compression": Rule(f"nothing, or {EXPECTED}", lambda x: x == "" or COMPRESSION.holds(x)),
    "evaluate.decoding.ctc_weight": number(
        "of at least 0, or -1 for that of --mode=calibrate", lambda x: x == -1 or x >= 0
    ),
}

# What may change between training and evaluation, and is told.
OF_THE_MODEL = ("dtype", "llm", "prompt", "lora", "encoder", "data.compression")
# Which clips a batch holds follows from these: a run goes on with the same, or clips would be read twice, or never.
ORDER_OF_DATA = ("seed", "encoder.train", "data.train", "data.weights", "data.compression", "data.rows", "data.row")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputErrors that lists every setting with a wrong value, too many or missing; reads no file."""
    values = flat(config)
    optional = {name for name in TABLE if name.startswith("evaluate.decoding.")} - {"evaluate.decoding.max_new_tokens"}
    rules = {name: rule for name, rule in TABLE.items() if name not in optional - values.keys()}
    if problems := _wrong(values, rules, "config.") or _inconsistent(config):
        raise InputErrors(problems)


def mended(config: ml_collections.ConfigDict) -> tuple[ml_collections.ConfigDict, frozenset[str]]:
    """A config with the default for every setting that alone is wrong or missing, and without what is no setting.

    Also the names of those that are wrong, alone or together: what `check` complains about, by which its sentences
    begin. What rests on them cannot be known.
    """
    try:
        check(config)
    except InputErrors as error:
        wrong = frozenset(re.sub(r"^config\.|\.$", "", re.match(r"[\w.]*", one)[0]) for one in error.sentences)
        right = {name: value for name, value in flat(config).items() if name in TABLE and TABLE[name].holds(value)}
        most = {"evaluate.decoding.max_new_tokens": base.get_config().evaluate.decoding.max_new_tokens}
        return completed(most | right), wrong
    return config, frozenset()


def completed(saved: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config that was saved with a checkpoint, with the settings of today.

    Settings that its version did not have get their defaults, and those that are no more are left out.
    """
    saved = flat(saved)
    config = {
        name: value for name, value in flat(base.get_config()).items() if not name.startswith("evaluate.decoding.")
    } | {name: value for name, value in saved.items() if name in TABLE}
    tree: dict[str, Any] = {}
    for name, value in config.items():
        *sections, last = name.split(".")
        section = functools.reduce(lambda tree, part: tree.setdefault(part, {}), sections, tree)
        section[last] = tuple(value) if isinstance(value, list) else value
    return ml_collections.ConfigDict(tree)


def check_decoding(settings: Mapping[str, Any]) -> None:
    """The same for the settings of a search alone, some of which may be missing."""
    rules = {name: rule for name, rule in DECODING.items() if name in settings or name == "max_new_tokens"}
    if problems := _wrong(dict(settings), rules, "decoding."):
        raise InputError("; ".join(problems))
    least, most = settings.get("min_new_tokens", 0), settings["max_new_tokens"]
    if least > most:
        raise InputError(f"decoding.min_new_tokens is {least}, expected at most max_new_tokens, which is {most}")


def _wrong(values: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str) -> list[str]:
    problems = []
    for name in sorted(values.keys() - rules.keys()):
        problems.append(no_setting(prefix + name, [prefix + known for known in rules]))
    for name, rule in rules.items():
        if name not in values:
            problems.append(f"{prefix}{name} is missing, expected {rule.expected}")
        elif not rule.holds(values[name]):
            problems.append(f"{prefix}{name} is {values[name]!r}, expected {rule.expected}")
    return problems


def _inconsistent(config: ml_collections.ConfigDict) -> list[str]:
    """Settings that are right alone, and do not go together."""
    problems, augment, decoding = [], config.data.augment, config.evaluate.decoding
    if config.profile_steps and config.profile_steps[1] > config.updates:
        problems.append(
            f"config.profile_steps ends at {config.profile_steps[1]}, beyond config.updates={config.updates}"
        )
    if augment.noise.probability and not (augment.noise.kinds and augment.noise.snr_db):
        problems.append("config.data.augment.noise: kinds and snr_db are empty, expected at least one of each")
    if augment.drop_audio + augment.drop_video > 1:
        problems.append("config.data.augment: drop_audio and drop_video sum to more than 1")
    if config.data.weights and len(config.data.weights) != len(config.data.train):
        problems.append(
            f"config.data.weights are {len(config.data.weights)}, expected none or one for each of the "
            f"{len(config.data.train)} of config.data.train"
        )
    for name in config.data.train:
        if (named := split_name(name))[1]:
            problems.append(
                f"config.data.train holds {name!r}, a name for evaluation: expected {named[0]!r}, and "
                f"config.data.compression={named[1]}"
            )
    if config.optimizer.weight_decay and config.optimizer.name != "adamw":
        problems.append("config.optimizer.weight_decay is for adamw, expected 0 or config.optimizer.name=adamw")
    if tuple(config.train.parts) == ("encoder",) and not config.encoder.train:
        problems.append("config.train.parts is the encoder alone, expected another part or config.encoder.train=true")
    if list(config.mesh.values()).count(-1) > 1:
        problems.append("config.mesh: more than one axis is -1, expected one that takes what the others leave")
    if decoding.get("ctc_weight", 0) > 0 and not config.ctc.weight:
        problems.append(
            f"config.evaluate.decoding.ctc_weight is {decoding.ctc_weight}, expected 0 or -1 for a training without a "
            "CTC head (config.ctc.weight=0)"
        )
    if decoding.get("min_new_tokens", 0) > decoding.max_new_tokens:
        problems.append("config.evaluate.decoding: min_new_tokens is above max_new_tokens")
    if config.checkpoint.best_by == "wer" and not config.samples.clips:
        problems.append("config.checkpoint.best_by is wer, expected config.samples.clips to be decoded for it")
    if config.data.seconds.mean > config.data.seconds.longest:
        problems.append("config.data.seconds: mean is above longest")
    if config.encoder.train and config.data.row.frames < config.data.row.clips:
        problems.append("config.data.row: frames is below clips, expected a frame for each clip of a row at least")
    return problems


def _is_compression(text: str) -> bool:
    try:
        return bool(Compression.of(text))
    except ValueError:
        return False


def no_setting(name: str, known: Sequence[str]) -> str:
    """The sentence for a setting that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} is no setting, {f'did you mean {near[0]}?' if near else 'configs/base.py lists all there are'}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """(name, value before, value now) of the settings that differ, of those in `names` and their sections.

    Settings that one side does not have, as of earlier versions, are passed over.
    """
    before, now = (json.loads(json.dumps(flat(config))) for config in (before, now))  # tuples and lists alike
    return [
        (name, before[name], value)
        for name, value in now.items()
        if name in before and before[name] != value and any(name == one or name.startswith(f"{one}.") for one in names)
    ]
