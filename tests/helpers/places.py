"""Where things are."""

import pathlib

TESTS = pathlib.Path(__file__).resolve().parents[1]
ROOT, GOLDEN = TESTS.parent, TESTS / "golden"
