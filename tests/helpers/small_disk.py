"""A disk of a few megabytes that can be filled up and made read-only, for what happens when there is no room."""

import pathlib
import subprocess
from collections.abc import Callable, Iterator

import pytest


class SmallDisk:
    """A file system of its own at `path`."""

    def __init__(self, path: pathlib.Path):
        self.path, self._ballast = path, path / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Takes all room but `leave` bytes."""
        self.free()
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:
                pass
        with self._ballast.open("r+b") as file:
            file.truncate(max(0, self._ballast.stat().st_size - leave))

    def free(self) -> None:
        """Gives the room back."""
        self._ballast.unlink(missing_ok=True)

    def read_only(self, on: bool = True) -> None:
        """Makes it read-only, for root too, or writable again."""
        subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], SmallDisk]]:
    """Called with a size in bytes it gives a new disk; skips the test where this user may not mount one."""
    mounted = []

    def make(size: int) -> SmallDisk:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk of its own cannot be mounted here ({done.stderr.strip()})")
        mounted.append(path)
        return SmallDisk(path)

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
