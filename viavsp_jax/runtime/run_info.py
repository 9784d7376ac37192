"""What a checkpoint is made by: code, packages, devices and data. Kept with it, shown by --mode=describe."""

import collections
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

import viavsp_jax

_ROOT = pathlib.Path(viavsp_jax.__file__).parent.parent
_END = 1 << 16  # bytes
_NOT_COMPARED = ("saved", "devices")
# Beside the packages that this project names itself.
_PARTS_OF_JAX = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def run_info(mesh: Mesh, data: Iterable[epath.Path]) -> dict[str, Any]:
    """What a run on these devices is made by, as JSON. Reads no more than the ends of the shards."""
    folders = list(data)
    names = collections.Counter(folder.name for folder in folders)
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
        "data": {
            folder.name if names[folder.name] == 1 else os.fspath(folder): fingerprint(folder) for folder in folders
        },
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
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each thing that is not as it was, time and devices aside; nothing of what was not recorded before."""
    before, now = (flat({name: x for name, x in one.items() if name not in _NOT_COMPARED}) for one in (before, now))
    return [f"{name} was {before[name]}, is {now.get(name)}" for name in before if before[name] != now.get(name)]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name: mappings inside, whatever class they are, are taken apart."""
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {f"{prefix}{name}": value}
    return found
