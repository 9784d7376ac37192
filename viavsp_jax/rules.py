"""What every setting may be: one table of rules, in words and as tests.

configs/base.py lists the same settings with their defaults and says what they mean.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from viavsp_jax.data.compression import EXPECTED, Compression
from viavsp_jax.data.features import NUM_FILTERS
from viavsp_jax.data.units import MOST
from viavsp_jax.models.avhubert.config import BatchNormStatistics
from viavsp_jax.models.llama import Remat
from viavsp_jax.models.lora import PROJECTIONS
from viavsp_jax.models.quantize import Quantization
from viavsp_jax.optimizer import PARTS, Name, Schedule

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


def _is_compression(text: str) -> bool:
    try:
        return bool(Compression.of(text))
    except ValueError:
        return False


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


def no_setting(name: str, known: Sequence[str]) -> str:
    """The sentence for a setting that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} is no setting, {f'did you mean {near[0]}?' if near else 'configs/base.py lists all there are'}"
