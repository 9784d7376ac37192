"""One kind of bad input: what docs/bad_input.md says of it, and how a test makes it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import pytest

REFUSED, SKIPPED = "refused", "skipped"


@dataclasses.dataclass(frozen=True)
class Bad:
    """A row of the page, and what makes good input bad in this way (its argument is the test's own)."""

    entry: str
    wrong: str
    outcome: Literal["refused", "skipped"]
    words: str  # part of the message
    make: Callable[..., Any]


def each(cases: list[Bad], outcome: str = REFUSED) -> pytest.MarkDecorator:
    """Parametrises a test by the cases of one outcome."""
    chosen = [pytest.param(case, id=case.wrong) for case in cases if case.outcome == outcome]
    return pytest.mark.parametrize("case", chosen)


def refused(run: Callable[[], Any], capsys: pytest.CaptureFixture) -> str:
    """The message of a command that ends with status 2: one line."""
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert shown.endswith(f"{line}\n"), "the sentence has a line break in it"
    return line
