"""Makes the report of an evaluation again from its hypotheses: python -m viavsp_jax.report --workdir WORKDIR."""

import argparse
import collections
import re

from etils import epath

from viavsp_jax.data.delimited import read_delimited
from viavsp_jax.data.ids import id_text, read_channels
from viavsp_jax.evaluation.report.analysis import Row
from viavsp_jax.evaluation.report.page import make_report, write_report
from viavsp_jax.evaluation.report.results import ABOUT, FILE, joined, move_old_tables, name_of, read_report, table_path
from viavsp_jax.runtime.errors import InputError, reported_to_user

_COLUMNS = ("id", "reference", "hypothesis")
_NUMBER = re.compile(r"\d+(\.\d*)?(e-?\d+)?", re.ASCII)


def read_table(path: epath.PathLike) -> list[Row]:
    """Rows of hypotheses, each of its own id.

    Raises InputError if columns or values are missing or too many, or there is no row, an id twice or missing, a
    reference missing, or no number where `seconds` are.
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
        if row.get("seconds") and not _NUMBER.fullmatch(row["seconds"]):
            raise InputError(f"{path}: the seconds of {row['id']!r} are {row['seconds']!r}, expected a number.")
    return rows


def remake(workdir: epath.PathLike, mapping: epath.PathLike) -> None:
    """Writes report.json and report.html anew. Raises InputError if the work folder was not evaluated."""
    old = read_report(workdir)
    path = epath.Path(workdir) / FILE
    if old is None:
        raise InputError(f"{path}: no such file, expected a work folder that --mode=eval has evaluated.")
    if not old["evaluations"]:
        raise InputError(f"{path}: names no shard folder, expected those that were evaluated.")
    move_old_tables(workdir, old)
    channels, report = read_channels(mapping), {"evaluations": {}}
    for key, about in old["evaluations"].items():
        rows = read_table(table_path(workdir, key))
        report = joined(report, make_report(about, {name_of(key, about): rows}, channels))
    write_report(workdir, report | {name: old[name] for name in ABOUT if name in old})


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m viavsp_jax.report", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--workdir", required=True, help="the folder that --mode=eval wrote to")
    parser.add_argument("--mapping", default="", help="mapping.json of the corpus, to tell channels apart")
    args = parser.parse_args()
    remake(args.workdir, args.mapping)


if __name__ == "__main__":
    main()
