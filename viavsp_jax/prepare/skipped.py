"""The records that a stage left out: `skipped.jsonl`, a line {"split", "id", "reason"} for each.

Stages that know no splits leave that field out. Where nothing was left out there is no file.
"""

import json
from collections.abc import Iterable

from etils import epath

from viavsp_jax.prepare.lines import read_lines, write_lines
from viavsp_jax.runtime.errors import InputError

SKIPPED_FILE = "skipped.jsonl"


def write_skipped(folder: epath.PathLike, skipped: Iterable[dict[str, str]], split: str | None = None) -> None:
    """Writes what was skipped now; given its `split`, what is written there of other splits stays.

    Raises InputError if what is there is not such a list.
    """
    path = epath.Path(folder) / SKIPPED_FILE
    others = [] if split is None else [line for line in read_skipped(folder) if line.get("split") != split]
    lines = [*others, *skipped]
    if lines:
        write_lines(path, (json.dumps(line, ensure_ascii=False) for line in lines))
    else:
        path.unlink(missing_ok=True)


def read_skipped(folder: epath.PathLike) -> list[dict[str, str]]:
    """What a stage left out; nothing where there is no list. Raises InputError if it is not such a list."""
    path = epath.Path(folder) / SKIPPED_FILE
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in read_lines(path)]
        if all(isinstance(line, dict) for line in lines):
            return lines
        reason = "other things are in it"
    except (ValueError, RecursionError) as error:
        reason = error
    raise InputError(f"{path}: not a list of what was skipped ({reason}), expected one or none: delete it.")
