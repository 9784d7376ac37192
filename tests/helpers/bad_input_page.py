"""Writes the tables of docs/bad_input.md from the tests' own: python tests/helpers/bad_input_page.py [--check]."""

import argparse
import sys

import pytest
from bad_input import Bad
from places import ROOT

PAGE = ROOT / "docs" / "bad_input.md"
ENTRIES = (
    "prepare mouths", "prepare manifest", "prepare kmeans, shards", "prepare shards", "language model",
    "training, evaluation", "training of the encoder", "report", "convert.from_hf", "convert.from_fairseq",
    "convert.from_km", "convert.to_hf",
)  # fmt: skip
HEAD = "| what is wrong | what happens | part of the message |\n|---|---|---|\n"


class Collector:
    """Takes the cases from the tests that pytest collects, and lets it run none of them."""

    def __init__(self) -> None:
        self.cases: list[Bad] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        given = (item.callspec.params.get("case") for item in items if hasattr(item, "callspec"))
        self.cases = list(dict.fromkeys(case for case in given if isinstance(case, Bad)))


def tables(cases: list[Bad]) -> str:
    """One for each entry, with a line for each case."""
    if unknown := {case.entry for case in cases} - {*ENTRIES}:
        raise SystemExit(f"bad_input_page.py knows no entry {', '.join(sorted(unknown))}")
    parts = []
    for entry in ENTRIES:
        lines = [f"| {x.wrong} | {x.outcome} | `{x.words}` |\n" for x in cases if x.entry == entry]
        parts.append(f"## {entry}\n\n{HEAD}{''.join(lines)}")
    return "\n".join(parts)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the page is not up to date")
    args, collector = parser.parse_args(), Collector()
    pytest.main(["--collect-only", "-qq", str(ROOT / "tests" / "robustness")], plugins=[collector])
    prose = PAGE.read_text(encoding="utf-8").split("\n## ")[0]
    page = f"{prose}\n{tables(collector.cases)}"
    if not args.check:
        PAGE.write_text(page, encoding="utf-8")
    elif page != PAGE.read_text(encoding="utf-8"):
        sys.exit("docs/bad_input.md is not what the tests make: run python tests/helpers/bad_input_page.py")
    print(f"{len(collector.cases)} cases")


if __name__ == "__main__":
    main()
