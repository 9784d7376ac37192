"""Transcripts as the model is to write them: one spelling of what looks alike, without what nobody sees or says.

What a corpus has of capitals, punctuation and digits stays, unless an option says otherwise; the reference's does.
"""

import argparse
import collections
import functools
import unicodedata
from collections.abc import Callable

from viavsp_jax.evaluation.numerals import read_numbers
from viavsp_jax.evaluation.vietnamese import normalize, place_tones, visible, with_our_d, without_punctuation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that change transcripts."""
    parser.add_argument("--lower_case", action="store_true", help="write transcripts in small letters")
    parser.add_argument("--no_punctuation", action="store_true", help="write transcripts without signs")
    parser.add_argument(
        "--numbers_as_read", action="store_true", help="write numbers of Vietnamese transcripts in words: hai mươi lăm"
    )
    parser.add_argument(
        "--tones",
        choices=["newer", "older"],
        help="where the tone marks of open syllables in oa, oe and uy stand: newer (hòa) or older (hoà); default: as "
        "they are in each transcript",
    )


class Cleaner:
    """Cleans the transcripts of one corpus, and counts what was changed."""

    def __init__(self, language: str, args: argparse.Namespace):
        self.seen = self.changed = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.capitals = 0
        self._steps = _steps(language, args)

    def __call__(self, transcript: str) -> str:
        """The text as it is to be written; empty if nothing is left."""
        text = transcript
        for name, step in self._steps:
            before, text = text, step(text)
            self.counts[name] += text != before
        self.seen += 1
        self.changed += text != transcript
        self.capitals += text.isupper()
        return text

    def summary(self) -> str:
        """What was changed, in a line for people; empty if nothing was."""
        if not self.changed:
            return ""
        kinds = ", ".join(f"{name} in {count:,}" for name, count in self.counts.items() if count)
        return f"{self.changed:,} of {self.seen:,} transcripts were changed: {kinds}"


def _steps(language: str, args: argparse.Namespace) -> list[tuple[str, Callable[[str], str]]]:
    is_vietnamese = language == "vi"
    steps = [
        ("Unicode form", functools.partial(unicodedata.normalize, "NFC"), True),
        ("spaces and invisible characters", visible, True),
        ("Đ of other alphabets", with_our_d, is_vietnamese),
        ("order of marks", normalize, is_vietnamese),
        ("capitals", str.lower, args.lower_case),
        ("numbers", lambda text: visible(read_numbers(text)), args.numbers_as_read and is_vietnamese),
        ("places of tone marks", functools.partial(place_tones, style=args.tones), bool(args.tones) and is_vietnamese),
        ("punctuation", without_punctuation, args.no_punctuation),
    ]
    return [(name, step) for name, step, wanted in steps if wanted]
