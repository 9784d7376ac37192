"""Where things are."""

import pathlib

TESTS = pathlib.Path(__file__).resolve().parents[1]
ROOT, GOLDEN, GOLDEN_OPEN = TESTS.parent, TESTS / "golden", TESTS / "golden_open"
