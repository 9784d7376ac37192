"""A config is checked before anything else is done: each setting by its rule, and whether they go together.

Also what configs of earlier versions are today, and how two configs differ.
"""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import base
from viavsp_jax.data.compression import split_name
from viavsp_jax.rules import DECODING, TABLE, Rule, no_setting
from viavsp_jax.runtime.errors import InputError, InputErrors
from viavsp_jax.runtime.run_info import flat

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
