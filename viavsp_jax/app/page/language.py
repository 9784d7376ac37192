"""The language of the page, Vietnamese or English: that of the visitor's browser.

What the page says is written in English where it is said, {names} standing for values, and once more in vietnamese.py.
So are the sentences of InputError, of notes and of progress that a visitor can meet. These come with their values
filled in, and are told apart by the words around them.
"""

import functools
import re

from starlette.requests import Request

from viavsp_jax.app.page.vietnamese import SENTENCES


def of(request: Request) -> str:
    """`vi` or `en`, whichever comes first in Accept-Language, which browsers sort."""
    found = re.search(r"(?:^|,)\s*(vi|en)\b", request.headers.get("accept-language", "").lower())
    return found[1] if found else "en"


def pattern(sentence: str, language: str) -> str:
    """A sentence in the visitor's language, with its places for values."""
    return SENTENCES[sentence] if language == "vi" else sentence


def say(sentence: str, language: str, **values: object) -> str:
    """A sentence with its values in the visitor's language."""
    return pattern(sentence, language).format(**values)


def decimal(number: float, digits: int, language: str) -> str:
    """A number with a comma where the language has one."""
    written = f"{number:.{digits}f}"
    return written.replace(".", ",") if language == "vi" else written


def told(sentence: str, language: str, otherwise: str) -> str:
    """A complete English sentence in the visitor's language; instead of one without Vietnamese that of `otherwise`."""
    if language == "en":
        return sentence
    for english, vietnamese in _expressions():
        if found := english.fullmatch(sentence):
            return vietnamese.format(**found.groupdict())
    return say(otherwise, language)


@functools.cache
def _expressions() -> list[tuple[re.Pattern, str]]:
    """What each English sentence looks like with values, and its Vietnamese."""
    return [
        (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.*?)", re.escape(english)), re.DOTALL), vietnamese)
        for english, vietnamese in SENTENCES.items()
    ]
