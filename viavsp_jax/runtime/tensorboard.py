"""Curves, texts and settings of a run, for TensorBoard and other trackers."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath

from viavsp_jax.runtime.errors import InputError


class Tracker(Protocol):
    """What a tracker's `init(config=...)` returns: of Weights & Biases, a run."""

    def log(self, values: dict[str, Any], *, step: int) -> None:
        """Numbers and texts by name."""

    def finish(self) -> None:
        """Nothing more will come."""


class _Object:
    """An event file in a bucket, where an object is only ever written whole."""

    def __init__(self, path: str):
        self._path, self._content, self._written = epath.Path(path), bytearray(), 0

    def write(self, data: bytes) -> None:
        self._content += data

    def flush(self) -> None:
        if self._written < len(self._content):
            self._path.write_bytes(bytes(self._content))
            self._written = len(self._content)

    close = flush


class _Bucket:
    """Where tensorboardX's own way writes again when the process ends, and waits two minutes if it cannot."""

    open = _Object

    def directory_check(self, path: str) -> None:
        """A bucket has no folders to make."""


class Writer:
    """TensorBoard files of a work folder, and trackers; written by the first process only.

    `trackers` are functions as MODULE:NAME, "wandb:init" for one. Each is called with the settings by dotted name, as
    `config`, and returns a Tracker. Raises InputError if there is no such function.
    """

    def __init__(self, workdir: epath.PathLike, settings: Mapping[str, Any], trackers: Sequence[str] = ()):
        # Imported here: it brings PyTorch along where that is installed, two seconds that other commands can spare.
        from tensorboardX import SummaryWriter
        from tensorboardX.record_writer import register_writer_factory
        from tensorboardX.summary import hparams

        folder, first = str(epath.Path(workdir) / "tensorboard"), jax.process_index() == 0
        starts = find_trackers(trackers)
        register_writer_factory("gs", _Bucket())
        self._summary = SummaryWriter(folder, write_to_disk=first)
        self._trackers: list[Tracker] = [start(config=dict(settings)) for start in starts] if first else []
        if first:
            plain = {name: x if isinstance(x, bool | int | float) else str(x) for name, x in settings.items()}
            # What TensorBoard's HParams shows beside the settings.
            for summary in hparams(plain, {"valid/loss": None, "valid/wer": None})[:2]:
                self._summary.file_writer.add_summary(summary)

    def write(self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None) -> None:
        """Adds one point to each named curve, and texts in Markdown."""
        for name, value in scalars.items():
            self._summary.add_scalar(name, value, step)
        for name, text in (texts or {}).items():
            self._summary.add_text(name, text, step)
        self._summary.flush()
        for tracker in self._trackers:
            tracker.log({**scalars, **(texts or {})}, step=step)

    def close(self) -> None:
        """Closes the files."""
        self._summary.close()
        for tracker in self._trackers:
            tracker.finish()


def find_trackers(names: Sequence[str]) -> list[Callable[..., Tracker]]:
    """The functions that start them. Raises InputError if one does not exist."""
    found = []
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            function = getattr(importlib.import_module(module), attribute)
            if not callable(function):
                raise TypeError(f"it is of type {type(function).__name__}")
        except Exception as error:  # of somebody's own Python
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"config.trackers has {name!r} ({what}), expected a function as MODULE:NAME") from error
        found.append(function)
    return found
