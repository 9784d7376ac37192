"""report.json holds the newest results of every shard folder and split that was evaluated, by a key for each of them.

The key is the folder's name or, for another split than test, `name.split`; `hypotheses/{key}.tsv` is its table. Results
may be of different checkpoints or searches: `evaluations` tells, again by key, what each was made with. What the last
evaluation was made with stands in front. Earlier versions held results of one evaluation, and did not say its search.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.runtime.errors import InputError

Report = dict[str, Any]
About = Mapping[str, Any]  # the fields of ABOUT

FILE = "report.json"
# Checkpoint and split are in every version, quantization where there is one.
ABOUT = ("checkpoint", "weights", "split", "dtype", "quantization", "decoding")
RESERVED = (*ABOUT, "evaluations", "analysis")


def key_of(name: str, about: About) -> str:
    """Under which the results of a shard folder are kept."""
    return name if about["split"] == "test" else f"{name}.{about['split']}"


def name_of(key: str, about: About) -> str:
    """The shard folder of a key."""
    return key if about["split"] == "test" else key.removesuffix(f".{about['split']}")


def search_of(about: About) -> str:
    """How results were searched for, in transformers' words: beams, most tokens and what is not as usual."""
    if not (decoding := about.get("decoding")):
        return "not recorded"
    usual = {field.name: field.default for field in dataclasses.fields(DecodingConfig)} | {"num_beams": None}
    search = [f"{name} {value}" for name, value in decoding.items() if value != usual.get(name)]
    return ", ".join([*search, *(str(about[name]) for name in ("dtype", "quantization") if name in about)])


def table_path(workdir: epath.PathLike, key: str) -> epath.Path:
    """Where the hypotheses lie."""
    return epath.Path(workdir) / "hypotheses" / f"{key}.tsv"


def joined(earlier: Report, report: Report) -> Report:
    """A report, and what an earlier one holds of other folders and splits."""
    evaluations = earlier["evaluations"] | report["evaluations"]
    of_key = {key: report if key in report["evaluations"] else earlier for key in evaluations}
    about = {name: report[name] for name in ABOUT if name in report}
    return {
        **about,
        **{key: one[key] for key, one in of_key.items()},
        "evaluations": evaluations,
        "analysis": {key: one["analysis"][key] for key, one in of_key.items()},
    }


def read_report(workdir: epath.PathLike) -> Report | None:
    """The report of a work folder, in today's form; None if there is none.

    Raises InputError if it is damaged.
    """
    path = epath.Path(workdir) / FILE
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_bytes())
        about, analysis = {name: report[name] for name in ("checkpoint", "split")}, report["analysis"]
        if "evaluations" in report:
            for key, made_with in report["evaluations"].items():
                report[key], analysis[key], key_of("", made_with), made_with["checkpoint"]  # noqa: B018
            return report
        scores = {key_of(name, about): report[name] for name in analysis if name in report}
        details = {key_of(name, about): part for name, part in analysis.items()}
        return {**about, **scores, "evaluations": dict.fromkeys(details, about), "analysis": details}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise not_a_report(workdir, error) from error


def not_a_report(workdir: epath.PathLike, error: Exception) -> InputError:
    """For what is met in a damaged one."""
    reason = " ".join(repr(error).split())[:300]
    path = epath.Path(workdir) / FILE
    return InputError(f"{path}: not a report ({reason}), expected one that --mode=eval wrote: move it away.")


def move_old_tables(workdir: epath.PathLike, report: Report) -> None:
    """Gives the tables of an earlier version, which were called by the folder alone whatever the split, their names."""
    folder = epath.Path(workdir)
    if "evaluations" not in json.loads((folder / FILE).read_bytes()):
        for key, about in report["evaluations"].items():
            old, new = table_path(folder, name_of(key, about)), table_path(folder, key)
            if old != new and old.exists() and not new.exists():
                old.rename(new)
