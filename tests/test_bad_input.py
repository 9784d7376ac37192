"""docs/bad_input.md lists the kinds of bad input that tests make, with the messages that they expect, and no others."""

import pathlib
import re

import test_bad_manifest
import test_bad_media
import test_bad_models
import test_bad_reports
import test_bad_shards
import test_bad_stages
from bad_input import REFUSED, SKIPPED, Bad

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "bad_input.md"
MODULES = (test_bad_manifest, test_bad_media, test_bad_models, test_bad_reports, test_bad_shards, test_bad_stages)


def cases() -> list[Bad]:
    """Those of all files of tests."""
    lists = [value for module in MODULES for value in vars(module).values() if isinstance(value, list)]
    return [case for found in lists for case in found if isinstance(case, Bad)]


def rows() -> list[tuple[str, ...]]:
    """(entry, what is wrong, what happens, part of the message) as the page has them."""
    found, entry = [], None
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            entry = line.removeprefix("## ")
        elif match := re.fullmatch(r"\| (.+?) \| (refused|skipped) \| `(.+)` \|", line):
            found.append((entry, *match.groups()))
    return found


def test_the_page_lists_what_the_tests_make():
    expected = [(case.entry, case.wrong, case.outcome, case.words) for case in cases()]
    assert len(set(expected)) == len(expected), "a kind is there twice"
    assert sorted(rows()) == sorted(expected)


def test_there_are_many_kinds():
    assert len(cases()) > 150 and {case.outcome for case in cases()} == {REFUSED, SKIPPED}


def test_every_row_of_the_page_is_read():
    """A row that is not of the form would be passed over."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "what is wrong" not in line]
    assert len(lines) == len(rows())
