"""What a look at a set-up found: each check for itself, so that no fault hides another."""

import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any

from viavsp_jax.runtime.buckets import bucket_trouble
from viavsp_jax.runtime.errors import RIGHTS, InputError

UNKNOWN: Any = object()  # what a check would have given
_WIDTH, _LONG_HEAD = 118, 24  # of the lines that are printed, and of what they begin with


class Findings:
    """What is right, what may be a mistake, and all faults, in the order in which they were found."""

    def __init__(self, wrong: Collection[str] = ()):
        """`wrong` are the names of settings that are; what rests on one is not looked at."""
        self.wrong = wrong
        self.facts: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.faults: list[str] = []
        self.passed_over: list[str] = []  # since what they rest on has a fault
        self.not_asked: list[str] = []

    def ask(
        self,
        what: str,
        check: Callable[..., Any],
        *bases: Any,
        settings: Sequence[str] = (),
        warn: bool = False,
    ) -> Any:
        """What `check` gives for `bases`; UNKNOWN where it raises InputError, or where it cannot be known.

        Args:
          what: is looked at.
          check: raises InputError for faults.
          bases: its arguments, some of them what other checks gave.
          settings: or sections of them, which it rests on besides.
          warn: its faults are none of training.
        """
        rests_on_wrong = any(_overlap(name, one) for name in settings for one in self.wrong)
        if rests_on_wrong or any(basis is UNKNOWN for basis in bases):
            self.passed_over.append(what)
            return UNKNOWN
        try:
            return check(*bases)
        except InputError as error:
            found = error.sentences
        except Exception as error:
            if (trouble := _of_a_place(error)) is None:
                raise
            found = (trouble,)  # without words on what was looked at: the same trouble is told once
        known = self.warnings if warn else self.faults
        known += [one for one in found if one not in known]
        return UNKNOWN

    def fact(self, what: str, text: str) -> None:
        """Something that is right."""
        self.facts.append((what, text))

    def text(self) -> str:
        """All of it for the eye."""
        width = max((len(what) for what, _ in self.facts), default=0)
        lines = [_indented(f"{what.ljust(width)}  ", text) for what, text in self.facts]
        for head, found in (("warnings", self.warnings), ("faults", self.faults)):
            if found:
                lines += ["", f"{head}:", *(_indented(f"{n:>3}. ", one) for n, one in enumerate(found, 1))]
        if passed := list(dict.fromkeys(self.passed_over)):
            lines += ["", _indented("not looked at before that is mended: ", ", ".join(passed))]
        if self.not_asked:
            lines += ["", _indented("not looked at: ", ", ".join(self.not_asked))]
        lines += ["", _verdict(len(self.faults))]
        return "\n".join(lines)


def _verdict(faults: int) -> str:
    if not faults:
        return "nothing is wrong"
    return f"{faults} {'fault' if faults == 1 else 'faults'}: training would not start"


def _indented(head: str, text: str) -> str:
    """Lines of a width that can be read; names of files stay whole, to be copied."""
    below = " " * (len(head) if len(head) < _LONG_HEAD else 4)
    return textwrap.fill(text, _WIDTH, initial_indent=head, subsequent_indent=below, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _overlap(one: str, other: str) -> bool:
    """Whether two names of settings, or of sections of them, are of the same, or one is inside the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _of_a_place(error: Exception) -> str | None:
    """What an error says of a folder or bucket that cannot be used; None if it is of another kind."""
    if trouble := bucket_trouble(error):
        return f"{trouble}, {RIGHTS}"
    if not isinstance(error, OSError):
        return None
    what = f"{error.filename}: {error.strerror}" if error.strerror and error.filename else str(error)
    return f"{' '.join(what.split())[:300]}, expected a place that this user may read"
