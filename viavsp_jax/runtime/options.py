"""Types of command-line options with bounds, for argparse's `type`, and options that got a new name.

What is out of bounds is an InputError, one sentence that names the option, before any work.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

from viavsp_jax.runtime.atomic import check_utf_8, check_writable
from viavsp_jax.runtime.errors import InputError

Parse = Callable[[str], Any]

MAX_SEED = 2**32 - 1  # of NumPy


class Renamed(argparse.Action):
    """Of an option whose second name is the one it had before: that works for one more release, with a notice."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, name: str = ""):
        now = self.option_strings[0]
        if name != now:
            print(f"note: {name} is now {now}; the old name will stop working in the next release", file=sys.stderr)
        setattr(namespace, self.dest, values)


def whole(option: str, at_least: int, at_most: int | None = None) -> Parse:
    """A whole number in these bounds."""
    bounds = f"at least {at_least}" + (f" and at most {at_most}" if at_most is not None else "")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < at_least or at_most is not None and value > at_most:
            raise InputError(f"{option} is {text}, expected a whole number {bounds}")
        return value

    return parse


def real(option: str, at_most: float = math.inf, *, at_least: float = -math.inf, above: float = -math.inf) -> Parse:
    """A finite number in these bounds; `above` is one that it must not be itself."""
    bounds = f"above {above:g}" if above > -math.inf else f"at least {at_least:g}"
    bounds += f" and at most {at_most:g}" if at_most < math.inf else ""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and at_least <= value <= at_most and value > above):
            raise InputError(f"{option} is {text}, expected a number {bounds}")
        return value

    return parse


def checkpoint_step(text: str) -> str:
    """--step: a checkpoint of a work folder."""
    if text not in ("best", "latest") and not (text.isascii() and text.isdigit()):
        raise InputError(f"--step is {text}, expected best, latest or the number of an update")
    return text


def new_file(option: str) -> Parse:
    """The path of a file that can be made or replaced."""
    return functools.partial(_new, option, False)


def new_folder(option: str) -> Parse:
    """The path of a folder that can be made or written to."""
    return functools.partial(_new, option, True)


def new_folder_on_disk(option: str) -> Parse:
    """As `new_folder`, for what writes files by their local names."""

    def parse(text: str) -> str:
        if "://" in text:
            raise InputError(f"{option} {text}: expected a folder on a disk, which can be copied to a bucket")
        return _new(option, True, text)

    return parse


def _new(option: str, folder: bool, text: str) -> str:
    if folder:
        check_utf_8(text, option)
    check_writable(text, option, folder)
    return text


def with_defaults(
    args: argparse.Namespace, add_arguments: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """The same, with the defaults of options that are not there: whoever made them may not know the newer ones."""
    parser = argparse.ArgumentParser(argument_default=None, add_help=False)
    add_arguments(parser)
    return argparse.Namespace(**{action.dest: action.default for action in parser._actions} | vars(args))
