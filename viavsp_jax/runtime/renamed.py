"""Modules that got another name work under the old one for one more release, with a notice."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence

_NOW = {
    "compile": "aot.compile",
    "data.atomic": "runtime.atomic",
    "decode": "decoding.search",
    "distributed": "runtime.distributed",
    "errors": "runtime.errors",
    "metrics": "losses",
    "models.avhubert_config": "models.avhubert.config",
    "numerals": "evaluation.numerals",
    "options": "runtime.options",
    "pace": "runtime.throughput",
    "paths": "runtime.paths",
    "preemption": "runtime.preemption",
    "prepare.mouth": "prepare.recordings.mouth",
    "prepare.reading": "prepare.features.reading",
    "prepare.sound": "prepare.recordings.sound",
    "prepare.timeline": "prepare.recordings.timeline",
    "prepare.tracks": "prepare.recordings.tracks",
    "scoring": "evaluation.scoring",
    "vietnamese": "evaluation.vietnamese",
}
RENAMED = {f"viavsp_jax.{old}": f"viavsp_jax.{new}" for old, new in _NOW.items()}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in RENAMED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        now = RENAMED[spec.name]
        warnings.warn(f"{spec.name} is now {now}; the old name will stop working in the next release", stacklevel=2)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state  # of the module itself; importing gave it that of the old name


def accept_old_names() -> None:
    """For `import` statements in this process from now on."""
    sys.meta_path.append(_Finder())
