"""Compares this project with recorded outputs of the reference's real code and prints a table.

    python scripts/check_golden.py --data tests/golden [--only media avhubert …]

Ends with status 1 if anything differs by more than its tolerance, or is missing. The folder's README says what was
recorded; other recordings of the same layout, with other sizes, work as well.
"""

import argparse
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the recordings were made on a CPU
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.golden import (
    avhubert,
    avhubert_flax,
    avsp,
    decoding,
    encoder_training,
    exchange,
    kmeans,
    media,
    nf4,
    training,
)
from scripts.golden.report import EXACT, Golden, Row
from viavsp_jax.runtime.errors import reported_to_user

AREAS: dict[str, Callable[[Golden], Iterator[Row]]] = {
    "media": media.checks,
    "avhubert": avhubert.checks,
    "avhubert_flax": avhubert_flax.checks,
    "kmeans": kmeans.checks,
    "avsp": avsp.checks,
    "decoding": decoding.checks,
    "training": training.checks,
    "encoder": encoder_training.checks,
    "exchange": exchange.checks,
    "nf4": nf4.checks,
}

# The real K-Means model is the reference's, so not in every copy; the file of attributes describes it.
MAY_BE_ABSENT = ("kmeans/centers.npz", "kmeans/model_km_attributes.json")


def file_checks(golden: Golden) -> Iterator[Row]:
    """The files, against the recording's own list of them."""
    for name, listed in sorted(golden.json("INDEX.json")["files"].items()):
        if not golden.has(name):
            if name in MAY_BE_ABSENT:
                yield Row(name, 0, EXACT, "absent", compared=False)
            else:
                yield Row(name, 1, EXACT, "missing")
        elif hashlib.sha256((golden.folder / name).read_bytes()).hexdigest() != listed["sha256"]:
            yield Row(name, 1, EXACT, "not the file that was recorded")


def leftover_checks(golden: Golden) -> Iterator[Row]:
    """Nothing recorded may go without a comparison."""
    listed = {name for name in golden.json("INDEX.json")["files"] if golden.has(name)}
    for name in [*sorted(listed - golden.read), *golden.unread()]:
        yield Row(name, 1, EXACT, "not compared")


def rows(golden: Golden, only: list[str]) -> Iterator[tuple[str, Row]]:
    """(area, comparison), as they are made."""
    areas = {"files": file_checks, **{name: AREAS[name] for name in only}}
    if len(only) == len(AREAS):
        areas["leftovers"] = leftover_checks
    for area, checks in areas.items():
        try:
            for row in checks(golden):
                yield area, row
        # Whatever goes wrong is a failed comparison; the other areas are still compared.
        except Exception as error:
            yield area, Row("the rest", float("inf"), EXACT, f"{type(error).__name__}: {error}")


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, type=pathlib.Path, help="the folder of recordings, with INDEX.json")
    parser.add_argument("--only", nargs="+", choices=AREAS, default=list(AREAS), help="areas (default: all)")
    args = parser.parse_args()
    if not (args.data / "INDEX.json").exists():
        parser.error(f"{args.data} holds no INDEX.json: expected a folder of recordings")
    results = []
    print(f"{'area':<14}{'max error':>11}{'tolerance':>11}  {'':<6}what")
    for area, row in rows(Golden(args.data), args.only):
        if row.compared:
            results.append(row.passed)
        tolerance = f"{row.tolerance:.0e}" if row.tolerance else "exact"
        error = f"{row.error:.1e}" if row.error else "0"
        note = f" ({row.note})" if row.note else ""
        outcome = ("pass" if row.passed else "FAIL") if row.compared else "-"
        print(f"{area:<14}{error:>11}{tolerance:>11}  {outcome:<6}{row.what}{note}", flush=True)
    failures = results.count(False)
    print(f"\n{len(results)} comparisons, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
