"""What the shards of a dataset folder were made from, so that a resumed run cannot mix two kinds.

`provenance.json` holds content hashes and settings of the whole folder, under `splits` those of each split.
"""

import hashlib
import json

from etils import epath

from viavsp_jax.data.atomic import write_bytes
from viavsp_jax.errors import InputError

FILE = "provenance.json"


def sha256(*paths: epath.Path) -> str:
    """The hash of the contents of files, one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def check(folder: epath.Path, settings: dict, splits: dict[str, dict]) -> None:
    """Refuses shards that were made from something else; then notes what this run makes them from.

    Raises InputError naming the file, the setting, its value then and its value now.
    """
    path = folder / FILE
    before = json.loads(path.read_text()) if path.exists() else {"splits": {}}
    _compare(path, "shards", before, settings)
    for split in sorted(splits.keys() & before["splits"].keys()):
        _compare(path, f"shards of split {split!r}", before["splits"][split], splits[split])
    now = settings | {"splits": before["splits"] | splits}
    if now != before:
        write_bytes(path, (json.dumps(now, indent=2) + "\n").encode())


def _compare(path: epath.Path, what: str, before: dict, now: dict) -> None:
    for name, value in now.items():
        if name in before and before[name] != value:
            raise InputError(
                f"{path}: the {what} there were made with another {name} ({before[name]}) than asked for now "
                f"({value}), expected the same, or another --output."
            )
