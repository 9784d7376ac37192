"""What a checkpoint is made by: code, packages, devices and data. Kept with it, shown by --mode=describe."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

import viavsp_jax
from viavsp_jax.checkpoint import Checkpoints
from viavsp_jax.data.atomic import write_bytes
from viavsp_jax.data.pipeline import shard_folders

_ROOT = pathlib.Path(viavsp_jax.__file__).parent.parent
_END = 1 << 16  # bytes
_NOT_COMPARED = ("saved", "devices")
# Beside the packages that this project names itself.
_PARTS_OF_JAX = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def origin(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """What a run on these devices is made by, as JSON. Reads no more than the ends of the shards."""
    return {
        "code": {"git": _git("rev-parse", "HEAD"), "changes": _changes(), "sha256": _source_hash()},
        "python": platform.python_version(),
        "packages": _packages(),
        "devices": {
            "kind": mesh.devices.flat[0].device_kind,
            "count": mesh.devices.size,
            "processes": jax.process_count(),
            "mesh": dict(mesh.shape),
        },
        "data": {folder.name: fingerprint(folder) for folder in shard_folders(config)},
    }


def fingerprint(folder: epath.PathLike) -> str:
    """SHA-256 over a shard folder: metadata, what it was made from, and name, size and both ends of each shard.

    The hashes of encoder, centres and manifest are part of what it was made from. "" where there is no such folder.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        return ""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if ".array_record-" in path.name and not path.name.startswith("."):
            total.update(f"{path.name} {path.stat().length}\n".encode())
            with path.open("rb") as file:
                total.update(file.read(_END))
                file.seek(max(0, path.stat().length - _END))
                total.update(file.read(_END))
        elif path.name in ("dataset_info.json", "features.json", "provenance.json"):
            total.update(f"{path.name} {_without_paths(path.read_bytes())}\n".encode())
    return total.hexdigest()


def _without_paths(record: bytes) -> str:
    """JSON without where encoder and centres lay; what is none, as it is: that is for others to refuse."""
    try:
        content = json.loads(record)
        return json.dumps({name: value for name, value in content.items() if name != "paths"}, sort_keys=True)
    except (ValueError, AttributeError, RecursionError):
        return repr(record)


def _git(*command: str) -> str | None:
    """What git says of this project's folder; None without git, or where that is no clone of its own."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *command], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def _changes() -> str | None:
    """The hash of what differs from the commit; "" if nothing does, None without git."""
    changes = _git("diff", "HEAD")
    return changes and hashlib.sha256(changes.encode()).hexdigest()


def _source_hash() -> str:
    """Of the code that runs, from git or not."""
    total = hashlib.sha256()
    for path in sorted(path for part in ("viavsp_jax", "convert") for path in (_ROOT / part).rglob("*.py")):
        total.update(f"{path.relative_to(_ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _packages() -> dict[str, str]:
    """The versions of what this project needs to train, as far as it is installed."""
    needed = [line for line in importlib.metadata.requires("viavsp_jax") or () if "extra ==" not in line]
    names = sorted({re.match(r"[\w.-]+", line)[0] for line in needed} | set(_PARTS_OF_JAX))
    return {name: version for name in names if (version := _version(name))}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each thing that is not as it was, time and devices aside; nothing of what was not recorded before."""
    before, now = (
        dict(_flat({name: x for name, x in one.items() if name not in _NOT_COMPARED})) for one in (before, now)
    )
    return [f"{name} was {before[name]}, is {now.get(name)}" for name in before if before[name] != now.get(name)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def describe(workdir: epath.PathLike, output: epath.PathLike | None = None) -> None:
    """Prints the checkpoints of a work folder and what the newest was made by; to `output` goes all of it, as JSON.

    Raises InputError if there is no checkpoint.
    """
    checkpoints = Checkpoints(workdir)
    best, steps = checkpoints.best_step(), checkpoints.steps()
    found = [
        {
            "update": step,
            "accuracy": checkpoints.accuracy(step),
            "origin": checkpoints.restore_origin(step),
            "fits": checkpoints.restore_fits(step),
            "config": checkpoints.restore_config(step),
        }
        for step in steps
    ]
    print(_table(found, best))
    newest = found[-1]
    for name, part in (("made by", "origin"), ("fits", "fits"), ("settings", "config")):
        part = newest[part]
        print(f"\nupdate {newest['update']}, {name}" if part else f"\nupdate {newest['update']}: {name} not recorded")
        lines = list(_flat(part))
        width = max((len(key) for key, _ in lines), default=0)
        print("\n".join(f"  {key:<{width}}  {_shown(value)}" for key, value in lines))
    if output:
        write_bytes(output, (json.dumps({"best": best, "checkpoints": found}, indent=2) + "\n").encode())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value in (None, "") else str(value)


def _table(found: Sequence[Mapping[str, Any]], best: int) -> str:
    lines = [f"{'update':>9}  {'accuracy':>8}  saved"]
    for one in found:
        notes = ["best"] * (one["update"] == best) + ["newest"] * (one is found[-1])
        # A checkpoint that was saved in a hurry was not validated.
        accuracy = f"{one['accuracy']:.4f}" if one["accuracy"] else "-"
        saved = one["origin"].get("saved", "at an unknown time")
        lines.append(f"{one['update']:>9,}  {accuracy:>8}  {saved}  {', '.join(notes)}".rstrip())
    return "\n".join(lines)
