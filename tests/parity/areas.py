"""All comparisons with recorded outputs of the reference's real code, by area."""

import hashlib
from collections.abc import Callable, Iterator

from tests.parity import (
    avhubert,
    avhubert_flax,
    avsp,
    decoding,
    encoder_training,
    exchange,
    kmeans,
    media,
    nf4,
    open_corpus,
    open_encoders,
    training,
)
from tests.parity.rows import EXACT, Golden, Row

AREAS: dict[str, Callable[[Golden], Iterator[Row]]] = {
    "media": media.checks,
    "avhubert": avhubert.checks,
    "avhubert_flax": avhubert_flax.checks,
    "kmeans": kmeans.checks,
    "avsp": avsp.checks,
    "decoding": decoding.checks,
    "training": training.checks,
    "encoder": encoder_training.checks,
    "exchange": exchange.checks,
    "nf4": nf4.checks,
}

OPEN_AREAS: dict[str, Callable[[Golden], Iterator[Row]]] = {
    "open_encoders": open_encoders.checks,
    "open_corpus": open_corpus.checks,
}

# The real K-Means model is the reference's, so not in every copy; the file of attributes describes it.
MAY_BE_ABSENT = ("kmeans/centers.npz", "kmeans/model_km_attributes.json")


def areas_of(golden: Golden) -> dict[str, Callable[[Golden], Iterator[Row]]]:
    """The areas of a recording: of the reference, or of open encoders and an open corpus, by the files it lists."""
    listed = golden.json("INDEX.json")["files"]
    return OPEN_AREAS if any(name.startswith(open_encoders.FOLDER) for name in listed) else AREAS


def file_checks(golden: Golden) -> Iterator[Row]:
    """The files, against the recording's own list of them."""
    for name, listed in sorted(golden.json("INDEX.json")["files"].items()):
        if not golden.has(name):
            if name in MAY_BE_ABSENT:
                yield Row(name, 0, EXACT, "absent", compared=False)
            else:
                yield Row(name, 1, EXACT, "missing")
        elif hashlib.sha256((golden.folder / name).read_bytes()).hexdigest() != listed["sha256"]:
            yield Row(name, 1, EXACT, "not the file that was recorded")


def leftover_checks(golden: Golden) -> Iterator[Row]:
    """Nothing recorded may go without a comparison."""
    listed = {name for name in golden.json("INDEX.json")["files"] if golden.has(name) and name != "README.md"}
    for name in [*sorted(listed - golden.read), *golden.unread()]:
        yield Row(name, 1, EXACT, "not compared")


def rows(golden: Golden, only: list[str] | None = None) -> Iterator[tuple[str, Row]]:
    """(area, comparison), as they are made, of some areas or, for None, of all."""
    known = areas_of(golden)
    areas = {"files": file_checks, **{name: known[name] for name in only or known}}
    if len(only or known) == len(known):
        areas["leftovers"] = leftover_checks
    for area, checks in areas.items():
        try:
            for row in checks(golden):
                yield area, row
        # Whatever goes wrong is a failed comparison; the other areas are still compared.
        except Exception as error:
            yield area, Row("the rest", float("inf"), EXACT, f"{type(error).__name__}: {error}")
