"""Comparisons as rows of a table, and a recording's files with a record of what was compared."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

EXACT, MODULE, WHOLE = 0.0, 1e-5, 1e-4


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison. An exact one counts the values that differ, any other gives the largest error."""

    what: str
    error: float
    tolerance: float
    note: str = ""
    compared: bool = True  # False: says only that there is nothing to compare

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance."""
        return self.error <= self.tolerance


def exact(what: str, ours: Any, recorded: Any) -> Row:
    """Counts the values that differ; things of another shape or kind differ altogether."""
    ours, recorded = np.asarray(ours), np.asarray(recorded)
    if ours.shape != recorded.shape:
        return Row(what, float("inf"), EXACT, f"shape {ours.shape}, recorded {recorded.shape}")
    return Row(what, float(np.sum(ours != recorded)), EXACT)


def close(what: str, ours: Any, recorded: Any, tolerance: float, relative: bool = False) -> Row:
    """The largest difference; where recorded values pass 1, or if `relative`, in units of the largest of them."""
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    if ours.shape != recorded.shape:
        return Row(what, float("inf"), tolerance, f"shape {ours.shape}, recorded {recorded.shape}")
    largest = np.abs(recorded).max(initial=0)
    scale = largest if relative and largest else max(1, largest)
    return Row(what, float((np.abs(ours - recorded) / scale).max(initial=0)), tolerance)


def worst(what: str, rows: Iterable[Row]) -> Row:
    """The row with the largest error stands for all; none at all is a failure."""
    rows = list(rows)
    if not rows:
        return Row(what, float("inf"), EXACT, "nothing recorded to compare with")
    # NaN is the largest error of all.
    found = max(rows, key=lambda row: (not row.passed, np.nan_to_num(row.error, nan=np.inf)))
    note = ", ".join(part for part in (found.note, f"{len(rows)} compared, worst: {found.what}") if part)
    return Row(what, found.error, found.tolerance, note)


def jit(function: Callable[..., Any], **more: Any) -> jax.stages.Wrapped:
    """jax.jit; on CPUs most of the time goes into compiling, and XLA's older generator of code takes half as long."""
    if jax.default_backend() != "cpu":
        return jax.jit(function)
    # Newer versions have the newer generator alone.
    older = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
    return jax.jit(function, compiler_options=older | more)


# Half of that again, without LLVM's optimisations, for programs that run but a few times.
jit_quickly = functools.partial(jit, xla_backend_optimization_level=0)


class Arrays(Mapping):
    """The arrays of an npz file; remembers which were looked at."""

    def __init__(self, path: pathlib.Path):
        with np.load(path, allow_pickle=False) as file:
            self._arrays = {name: file[name] for name in file.files}
        self.unread = set(self._arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        value = self._arrays[name]
        self.unread.discard(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class Golden:
    """A folder of recordings. Files are named by their path in it; what is read is remembered."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.read: set[str] = set()
        self._arrays: dict[str, Arrays] = {}

    def path(self, name: str) -> pathlib.Path:
        """A file or folder; FileNotFoundError when it is not there."""
        path = self.folder / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing")
        files = path.rglob("*") if path.is_dir() else [path]
        self.read |= {file.relative_to(self.folder).as_posix() for file in files}
        return path

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / name).exists()

    def arrays(self, name: str) -> Arrays:
        """The arrays of an npz file."""
        if name not in self._arrays:
            self._arrays[name] = Arrays(self.path(name))
        return self._arrays[name]

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def lines(self, name: str) -> list[str]:
        """The lines of a text file."""
        return self.path(name).read_text(encoding="utf-8").splitlines()

    def numbers(self, name: str) -> list[list[int]]:
        """The lines of a file of integers; blank ones, which the reference writes when it merges files, left out."""
        return [[int(number) for number in line.split()] for line in self.lines(name) if line.strip()]

    def names(self, pattern: str) -> list[str]:
        """Sorted names of the files that match."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))

    def unread(self) -> list[str]:
        """Arrays of files that were opened, but not looked at."""
        return [f"{name}[{array}]" for name, arrays in self._arrays.items() for array in sorted(arrays.unread)]
