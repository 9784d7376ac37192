"""A recorded `.pt` file, as PyTorch itself reads it."""

import pathlib
from typing import Any

import torch


def as_pytorch_reads(path: pathlib.Path) -> dict[str, Any]:
    """All of the file; classes of fairseq are emptied."""
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(type("Foreign", (), {}), name) for name in named]):
        return torch.load(path, weights_only=True)
