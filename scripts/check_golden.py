"""Compares this project with recorded outputs of others' real code and prints a table.

    python scripts/check_golden.py --data tests/golden [--only media avhubert …] [--output FILE.json]
    python scripts/check_golden.py --data tests/golden_open

Runs on a CPU, where the recordings were made, unless JAX_PLATFORMS says something else. Ends with status 1 if anything
differs by more than its tolerance, or is missing. The folder's README says what was recorded: of the reference, or of
open encoders and an open corpus. Other recordings of the same layouts, with other sizes, work as well.
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tests.parity.areas import areas_of, rows
from tests.parity.rows import Golden
from viavsp_jax.runtime.errors import reported_to_user


@reported_to_user()
def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, type=pathlib.Path, help="the folder of recordings, with INDEX.json")
    parser.add_argument("--only", nargs="+", metavar="AREA", help="areas (default: all)")
    parser.add_argument("--output", type=pathlib.Path, help="also write the table to this JSON file, row by row")
    args = parser.parse_args()
    if not (args.data / "INDEX.json").exists():
        parser.error(f"{args.data} holds no INDEX.json: expected a folder of recordings")
    golden = Golden(args.data)
    areas = areas_of(golden)
    if unknown := set(args.only or ()) - areas.keys():
        parser.error(f"--only {min(unknown)}: expected one of {', '.join(areas)}")
    results, shown = [], []
    print(f"{'area':<14}{'max error':>11}{'tolerance':>11}  {'':<6}what")
    for area, row in rows(golden, args.only):
        if row.compared:
            results.append(row.passed)
        tolerance = f"{row.tolerance:.0e}" if row.tolerance else "exact"
        error = f"{row.error:.1e}" if row.error else "0"
        note = f" ({row.note})" if row.note else ""
        outcome = ("pass" if row.passed else "FAIL") if row.compared else "-"
        print(f"{area:<14}{error:>11}{tolerance:>11}  {outcome:<6}{row.what}{note}", flush=True)
        shown.append([area, error, tolerance, outcome, row.what + note])
        if args.output:
            args.output.write_text(json.dumps({"rows": shown}, ensure_ascii=False), encoding="utf-8")
    failures = results.count(False)
    print(f"\n{len(results)} comparisons, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
