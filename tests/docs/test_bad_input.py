"""docs/bad_input.md lists the kinds of bad input that tests make, with the messages that they expect, and no others."""

import subprocess
import sys

from places import ROOT


def test_the_page_lists_what_the_tests_make():
    command = [sys.executable, "tests/helpers/bad_input_page.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1].removesuffix(" cases")) > 150
