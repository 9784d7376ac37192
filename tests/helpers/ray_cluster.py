"""The environment of a Ray cluster for tests."""

import os
import tempfile

import pytest


@pytest.fixture(scope="module")
def surroundings():
    """Environment of all Ray processes: their logs and token are not left in the user's folders."""
    with tempfile.TemporaryDirectory() as logs, pytest.MonkeyPatch.context() as patch:  # a socket's path is short
        patch.setenv("RAY_TMPDIR", logs)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "of-the-tests" * 4)
        patch.setenv(
            "PYTHONPATH",
            os.pathsep.join([os.getcwd(), os.path.join(os.getcwd(), "tests", "helpers"), os.environ["PYTHONPATH"]]),
        )
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield
