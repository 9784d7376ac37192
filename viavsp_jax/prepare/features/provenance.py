"""What the shards of a dataset folder were made from, so that a resumed run cannot mix two kinds.

`provenance.json` holds content hashes and settings of the whole folder, under `splits` those of each split, and under
`paths` where the encoder and the K-Means centres lay. Where frames were not clustered, `kmeans` is null.
"""

import hashlib
import json
import os

from etils import epath

from viavsp_jax.data.examples import PROVENANCE
from viavsp_jax.runtime.atomic import write_bytes
from viavsp_jax.runtime.errors import InputError

FILE = PROVENANCE
VASR_CLIP = 76  # frames
ENCODER_FILES = ("config.json", "model.safetensors")


def sha256(*paths: epath.Path) -> str:
    """The hash of the contents of files, one after the other. Raises InputError if there is no such file."""
    total = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file, expected what shards are made with.")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def encoder_hash(folder: epath.PathLike) -> str:
    """The hash of an encoder's files."""
    return sha256(*(epath.Path(folder) / file for file in ENCODER_FILES))


def _read(path: epath.Path) -> dict:
    """What is recorded; nothing where there is no file."""
    if not path.exists():
        return {}
    try:
        recorded = json.loads(path.read_bytes())
        if all(isinstance(part, dict) for part in (recorded, *recorded.get("splits", {}).values())):
            return recorded
        reason = "it holds other things"
    except (ValueError, AttributeError, RecursionError) as error:
        reason = error
    raise InputError(
        f"{path}: not what the shards stage wrote ({reason}), expected a record of what the shards were made from."
    )


def encoder_and_centers(
    folder: epath.PathLike,
    encoder: epath.PathLike | None = None,
    kmeans: epath.PathLike | None = None,
    clustered: bool = True,
) -> tuple[epath.Path, epath.Path | None]:
    """The encoder's folder and the file of centres that a shard folder was made with.

    They lie where they did then, if `encoder` and `kmeans` say nothing else. Where frames are not `clustered`, there
    are no centres unless they are given. Raises InputError if one of them is not there, or not the one.
    """
    path, found = epath.Path(folder) / FILE, []
    recorded = _read(path)
    for name, given in (("encoder", encoder), ("kmeans", kmeans)):
        if name == "kmeans" and not (clustered or given):
            found.append(None)
            continue
        place = given or recorded.get("paths", {}).get(name)
        if not place:
            raise InputError(f"{path} does not say where the {name} lies that the shards were made with: give --{name}")
        place = epath.Path(place)
        for file in [place / one for one in ENCODER_FILES] if name == "encoder" else [place]:
            if not file.exists():
                raise InputError(f"{file}: no such file, expected what the shards were made with: give --{name}")
        now = encoder_hash(place) if name == "encoder" else sha256(place)
        if recorded.get(name, now) != now:
            raise InputError(f"{place} is not the {name} that the shards in {folder} were made with: give --{name}")
        found.append(place)
    return tuple(found)


def longest_clip(folder: epath.PathLike) -> int:
    """Frames of the longest training clip of a shard folder; that of VASR if it is not recorded."""
    return _read(epath.Path(folder) / FILE).get("splits", {}).get("train", {}).get("longest_clip", VASR_CLIP)


def check(folder: epath.Path, settings: dict, splits: dict[str, dict], paths: dict[str, str]) -> None:
    """Refuses shards that were made from something else; then notes what this run makes them from, and its `paths`.

    Raises InputError naming the file, the setting, its value then and its value now.
    """
    path = folder / FILE
    before = {"splits": {}} | _read(path)
    _compare(path, "shards", before, settings)
    for split in sorted(splits.keys() & before["splits"].keys()):
        _compare(path, f"shards of split {split!r}", before["splits"][split], splits[split])
    absolute = {name: path if "://" in path else os.path.abspath(path) for name, path in paths.items()}
    now = settings | {"splits": before["splits"] | splits, "paths": absolute}
    if now != before:
        write_bytes(path, (json.dumps(now, indent=2) + "\n").encode())


def _compare(path: epath.Path, what: str, before: dict, now: dict) -> None:
    for name, value in now.items():
        if name in before and before[name] != value:
            raise InputError(
                f"{path}: the {what} there were made with another {name} ({before[name]}) than asked for now "
                f"({value}), expected the same, or another --output."
            )
