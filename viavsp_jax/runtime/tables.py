"""Tables, for the terminal and as files."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from etils import epath

from viavsp_jax.runtime.atomic import write_bytes


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as lines: the first column flush left, all others flush right, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip() for first, *rest in rows
    )


def write_table(path: epath.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of equal keys, at least one, as tab-separated values with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())
