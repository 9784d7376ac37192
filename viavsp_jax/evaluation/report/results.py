"""Where results are kept: a folder of `evaluations` for each checkpoint, split and search, with a table for each set.

    WORKDIR/evaluations/00009600-test-beam20-bfloat16/{report.json, report.html, av_clean.tsv, …}
    WORKDIR/{report.json, report.html}     of the last evaluation; the page compares it with the others

The name says what usually tells evaluations apart. Where two have the same, as of two trainings, or of searches that
differ in something else, the later one's ends with a hash of all that it was made with. An evaluation that is made
again replaces itself; one of other sets adds to it.

In report.json results have keys: the set's name or, of another split than test, `name.split`. Earlier versions kept the
newest results of each key, whatever they were made with, in report.json and `hypotheses/{key}.tsv`, and the first ones
did not say their search.
"""

import collections
import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from viavsp_jax.data.delimited import read_delimited
from viavsp_jax.data.ids import id_text
from viavsp_jax.decoding.search import DecodingConfig
from viavsp_jax.evaluation.report.analysis import Row
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError

Report = dict[str, Any]
About = Mapping[str, Any]  # the fields of ABOUT
Reports = dict[str, Report]  # of a work folder, by the names of their folders

FILE, PLACE = "report.json", "evaluations"
# Checkpoint and split are in every version, quantization where there is one.
ABOUT = (
    "checkpoint",
    "weights",
    "split",
    "dtype",
    "quantization",
    "compression",
    "decoding",
    "ctc_weight",
    "confidence",
)
_PLACES = ("dtype", "quantization", "compression")  # in names; the last two only where they are not as usual
RESERVED = (*ABOUT, "evaluations", "analysis")
_COLUMNS = ("id", "reference", "hypothesis")
_NUMBER = re.compile(r"\d+(\.\d*)?(e-?\d+)?", re.ASCII)


def key_of(name: str, about: About) -> str:
    """Under which the results of a set are kept."""
    return name if about["split"] == "test" else f"{name}.{about['split']}"


def name_of(key: str, about: About) -> str:
    """The set of a key."""
    return key if about["split"] == "test" else key.removesuffix(f".{about['split']}")


def about_of(report: Report) -> dict[str, Any]:
    """What an evaluation was made with."""
    return {name: report[name] for name in ABOUT if name in report}


def search_of(about: About) -> str:
    """How results were searched for, in transformers' words: beams, most tokens and what is not as usual."""
    if not (decoding := about.get("decoding")):
        return "not recorded"
    usual = {field.name: field.default for field in dataclasses.fields(DecodingConfig)} | {"num_beams": None}
    search = [f"{name} {value}" for name, value in decoding.items() if value != usual.get(name)]
    search += [f"ctc_weight {about['ctc_weight']:g}"] if "ctc_weight" in about else []
    return ", ".join([*search, *(str(about[name]) for name in _PLACES if name in about)])


def folder_name(about: About, kept: Mapping[str, Report]) -> str:
    """What the folder of an evaluation is called, or is to be called beside those that are kept."""
    beams = [f"beam{about['decoding']['num_beams']}"] if about.get("decoding") else []
    places = [about[name] for name in _PLACES if name in about]
    heard = [f"ctc{about['ctc_weight']:g}"] if "ctc_weight" in about else []
    name = "-".join([f"{about['checkpoint']:08}", about["split"], *beams, *heard, *places])
    if name not in kept or about_of(kept[name]) == about:
        return name
    return f"{name}-{zlib.crc32(json.dumps(about, sort_keys=True).encode()):08x}"


def folder_of(workdir: epath.PathLike, about: About) -> epath.Path:
    """Where an evaluation is kept, or is to be. Raises InputError as `read_all` does."""
    return epath.Path(workdir) / PLACE / folder_name(about, read_all(workdir))


def last_folder(workdir: epath.PathLike) -> epath.Path:
    """Where the last evaluation is kept. Raises InputError if the work folder was not evaluated."""
    path, report = epath.Path(workdir) / FILE, read_report(workdir)
    if report is None:
        raise InputError(f"{path}: no such file, expected a work folder that --mode=eval has evaluated.")
    if not report["evaluations"]:
        raise InputError(f"{path}: names no shard folder, expected those that were evaluated.")
    return folder_of(workdir, about_of(report))


def joined(earlier: Report | None, report: Report) -> Report:
    """A report, and what an earlier one of the same evaluation holds of other sets."""
    if earlier is None:
        return report
    parts = {name: earlier[name] | report[name] for name in ("evaluations", "analysis")}
    return {**about_of(report), **{key: {**earlier, **report}[key] for key in parts["analysis"]}, **parts}


def read_report(folder: epath.PathLike) -> Report | None:
    """The report of a folder, in today's form; None if there is none. Raises InputError if it is damaged."""
    path = epath.Path(folder) / FILE
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_bytes())
        about, analysis = {name: report[name] for name in ("checkpoint", "split")}, report["analysis"]
        if "evaluations" not in report:
            scores = {key_of(name, about): report[name] for name in analysis}
            details = {key_of(name, about): part for name, part in analysis.items()}
            report = {**about, **scores, "evaluations": dict.fromkeys(details, about), "analysis": details}
        _check(report)
        return report
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise not_a_report(path, error) from error


def _check(report: Report) -> None:
    """Raises some error if the report is not one; names that it tells become names of files."""
    for key, about in report["evaluations"].items():
        report[key], report["analysis"][key], search_of(about)  # noqa: B018
        if "/" in key or "/" in folder_name(about, {}):
            raise ValueError(f"{key!r}, {about['split']!r} and what else names files are to have no /")
    folder_name(report, {})


def not_a_report(path: epath.PathLike, error: Exception) -> InputError:
    """For what is met in a damaged one."""
    reason = " ".join(repr(error).split())[:300]
    return InputError(f"{path}: not a report ({reason}), expected one that --mode=eval wrote: move it away.")


def read_all(workdir: epath.PathLike) -> Reports:
    """The reports of all evaluations, those of an earlier version too. Raises InputError if one is damaged."""
    workdir = epath.Path(workdir)
    folders = sorted(path.parent for path in (workdir / PLACE).glob(f"*/{FILE}"))
    kept = {folder.name: read_report(folder) for folder in folders}
    last = read_report(workdir) or {"evaluations": {}}
    for key, about in last["evaluations"].items():
        name = folder_name(about, kept)
        if name not in kept or key not in kept[name]["analysis"]:
            one = {"evaluations": {key: about}, "analysis": {key: last["analysis"][key]}}
            kept[name] = joined(kept.get(name), {**about, key: last[key], **one})
    return kept


def take_over(workdir: epath.PathLike) -> None:
    """Moves what an earlier version left in a work folder to where it is kept now."""
    workdir = epath.Path(workdir)
    old = workdir / "hypotheses"
    # The first versions called a table by the folder alone, whatever the split.
    by_key = old.exists() and "evaluations" in json.loads((workdir / FILE).read_bytes())
    for name, report in read_all(workdir).items():
        folder = workdir / PLACE / name
        if read_report(folder) != report:
            write_bytes(folder / FILE, as_json(report))
        for key, about in report["evaluations"].items():
            table = old / f"{key if by_key else name_of(key, about)}.tsv"
            if table.exists():
                table.rename(folder / f"{name_of(key, about)}.tsv")
    if old.exists() and not any(old.iterdir()):
        old.rmdir()


def as_json(report: Report) -> bytes:
    """The content of a file."""
    return (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()


def read_table(path: epath.PathLike) -> list[Row]:
    """Rows of hypotheses, each of its own id.

    Raises InputError if columns or values are missing or too many, or there is no row, an id twice or missing, a
    reference missing, or no number where `seconds`, `positions` or `confidences` are.
    """
    if not epath.Path(path).is_file():
        raise InputError(f"{path}: no such file, expected the hypotheses that --mode=eval wrote.")
    rows = read_delimited(path, _COLUMNS, "\t")
    if not rows:
        raise InputError(f"{path}: expected a table with {', '.join(_COLUMNS)} and at least one clip.")
    rows = [row | {"id": id_text(row["id"])} for row in rows]
    ids = collections.Counter(row["id"] for row in rows)
    for row in rows:
        if not row["id"].strip():
            raise InputError(f"{path}: the row of reference {row['reference']!r:.60} has no id.")
        if ids[row["id"]] > 1:
            raise InputError(f"{path}: id {row['id']!r} occurs twice, expected a clip to be scored once.")
        if not row["reference"].strip():
            raise InputError(f"{path}: the reference of {row['id']!r} is empty, expected what is said.")
        _check_confidences(path, row)
        for name in ("seconds", "positions"):
            if row.get(name) and not _NUMBER.fullmatch(row[name]):
                raise InputError(f"{path}: the {name} of {row['id']!r} are {row[name]!r}, expected a number.")
    return rows


def _check_confidences(path: epath.PathLike, row: Row) -> None:
    told, words = row.get("confidences", "").split(), row["hypothesis"].split()
    if told and (len(told) != len(words) or not all(_NUMBER.fullmatch(x) and float(x) <= 1 for x in told)):
        raise InputError(
            f"{path}: the confidences of {row['id']!r} are {row['confidences']!r:.60}, expected a number from 0 to 1 "
            f"for each of its {len(words)} words."
        )
