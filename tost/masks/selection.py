"""Exactly the k best of n, whatever the ties."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def keep_largest(scores: Tensor, k: int) -> Tensor:
    """True for exactly `k` entries of `scores`, the largest; among equal scores the first.

    Args:
        scores: shape (n,), float32 or float64, CPU, no NaN.
        k: 0 <= k <= n.

    Returns:
        Bool tensor of shape (n,) with exactly `k` True.

    Linear time: a partition (SIMD in numpy) finds the k-th largest, nothing is sorted. `torch.topk` would leave it open
    WHICH of equal scores it takes, and it may differ between devices and versions: masks would not be reproducible.
    """
    n = scores.numel()
    if not 0 <= k <= n:
        raise ValueError(f"k: expected 0 <= k <= {n}, got {k}")
    if k == 0 or k == n:
        return torch.full((n,), k == n, dtype=torch.bool)
    threshold = float(np.partition(scores.numpy(), n - k)[n - k])
    keep = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    keep[ties[: k - int(keep.count_nonzero())]] = True
    return keep
