"""Makes the report of an evaluation again from its hypotheses: python -m viavsp_jax.report --workdir WORKDIR."""

import argparse
import csv
import io
import json

from etils import epath

from viavsp_jax.errors import InputError, reported_to_user
from viavsp_jax.report.analysis import Row, read_channels
from viavsp_jax.report.page import make_report, write_report

_COLUMNS = ("id", "reference", "hypothesis")


def read_table(path: epath.PathLike) -> list[Row]:
    """Rows of hypotheses. Raises InputError if columns are missing, or there is no row or no reference."""
    try:
        text = epath.Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}).") from error
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    if not rows or not all(row.get(column) is not None for row in rows for column in _COLUMNS):
        raise InputError(f"{path}: expected a table with {', '.join(_COLUMNS)} and at least one clip.")
    if empty := [row["id"] for row in rows if not row["reference"].strip()]:
        raise InputError(f"{path}: the reference of {empty[0]!r} is empty, expected what is said.")
    return rows


def remake(workdir: epath.PathLike, mapping: epath.PathLike) -> None:
    """Writes report.json and report.html anew. Raises InputError if the work folder was not evaluated."""
    workdir = epath.Path(workdir)
    path = workdir / "report.json"
    if not path.exists():
        raise InputError(f"{path}: no such file, expected a work folder that --mode=eval has evaluated.")
    try:
        old = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a report ({error}), expected one that --mode=eval wrote.") from error
    tables = {name: workdir / "hypotheses" / f"{name}.tsv" for name in old}
    tables = {name: read_table(table) for name, table in tables.items() if table.exists()}
    about = {name: value for name, value in old.items() if name not in (*tables, "analysis")}
    write_report(workdir, make_report(about, tables, read_channels(mapping)))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m viavsp_jax.report", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--workdir", required=True, help="the folder that --mode=eval wrote to")
    parser.add_argument("--mapping", default="", help="mapping.json of the corpus, to tell channels apart")
    args = parser.parse_args()
    with reported_to_user():
        remake(args.workdir, args.mapping)


if __name__ == "__main__":
    main()
