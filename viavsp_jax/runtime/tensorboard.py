"""Curves of a run, for TensorBoard."""

import jax
from etils import epath
from tensorboardX import SummaryWriter


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
