"""Runs of frames in the same cluster, and their means.

Part of every export, see modeling_viavsp.py.
"""

import torch
from torch import Tensor


def segment_means(features: Tensor, counts: Tensor) -> Tensor:
    """Means of runs of frames, summed in float32: [T, E] and int64[U] (they sum to T) → float32[U, E]."""
    segments = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    sums = torch.zeros(len(counts), features.shape[1], device=features.device)
    return sums.index_add(0, segments, features.float()) / counts[:, None]


def nearest(features: Tensor, centers: Tensor) -> Tensor:
    """The nearest centre of each frame, in float64: [T, E] and float32[K, E] → int64[T]."""
    features, centers = features.double(), centers.double()
    return ((centers * centers).sum(1) - 2 * features @ centers.T).argmin(1)


def run_lengths(labels: Tensor) -> Tensor:
    """The lengths of the runs of equal neighbours: int64[T] → int64[U], which sum to T."""
    return torch.unique_consecutive(labels, return_counts=True)[1]
