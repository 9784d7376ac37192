"""Curves of a run, for TensorBoard."""

import jax
from etils import epath
from tensorboardX import SummaryWriter
from tensorboardX.record_writer import register_writer_factory


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


register_writer_factory("gs", _Bucket())


class Writer:
    """TensorBoard files of a work folder, written by the first process only."""

    def __init__(self, workdir: epath.PathLike):
        folder = str(epath.Path(workdir) / "tensorboard")
        self._summary = SummaryWriter(folder, write_to_disk=jax.process_index() == 0)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Adds one point to each named curve."""
        for name, value in scalars.items():
            self._summary.add_scalar(name, value, step)
        self._summary.flush()

    def close(self) -> None:
        """Closes the files."""
        self._summary.close()
