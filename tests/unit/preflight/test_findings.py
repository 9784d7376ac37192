"""The list itself: what is asked, what is passed over, and what is told."""

import errno

import pytest

from viavsp_jax.preflight.findings import UNKNOWN, Findings
from viavsp_jax.runtime.errors import RIGHTS, InputError, InputErrors


def failing(error):
    def check(*_):
        raise error

    return check


def test_a_fault_hides_no_other_and_is_told_once():
    found = Findings()
    one = found.ask("one", failing(InputErrors(["a is wrong", "b is wrong"])))
    found.ask("again", failing(InputError("b is wrong")))
    found.ask("to be mended later", failing(InputError("c is odd")), warn=True)
    assert found.ask("two", lambda x: x + 1, 1) == 2
    assert one is UNKNOWN and found.ask("rests on one", failing(AssertionError), 3, one) is UNKNOWN
    assert (found.faults, found.warnings, found.passed_over) == (
        ["a is wrong", "b is wrong"],
        ["c is odd"],
        ["rests on one"],
    )
    shown = found.text()
    assert "  1. a is wrong\n  2. b is wrong\n" in shown and "warnings:\n  1. c is odd\n" in shown
    assert "not looked at before that is mended: rests on one\n" in shown
    assert shown.endswith("2 faults: training would not start")


@pytest.mark.parametrize(("settings", "looked_at"), [
    (("data.row",), False), (("data",), False), (("data.row.window",), False), (("data.rows",), True), (("dat",), True),
])  # fmt: skip
def test_what_rests_on_wrong_settings_is_passed_over(settings, looked_at):
    found = Findings({"data.row.window"})
    assert (found.ask("rows", lambda: True, settings=settings) is True) == looked_at
    assert found.passed_over == ([] if looked_at else ["rows"]) and not found.faults


def test_a_place_that_cannot_be_used_is_a_fault_and_a_mistake_of_the_program_is_none():
    found = Findings()
    found.ask("shards", failing(PermissionError(errno.EACCES, "Permission denied", "/data/shards")))
    client = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})
    found.ask("weights", failing(client("403: no access to gs://bucket")))
    found.ask("work folder", failing(ImportError("Please install gcsfs to access Google Storage")))
    assert found.faults == [
        "/data/shards: Permission denied, expected a place that this user may read",
        f"403: no access to gs://bucket, {RIGHTS}",
        f"gs:// paths need the package gcsfs, which is not installed: pip install gcsfs, {RIGHTS}",
    ]
    with pytest.raises(KeyError):
        found.ask("a mistake", failing(KeyError("x")))
