"""Which weights of a layer are kept: exactly the k best, whatever the ties.

A selection takes the scores of one layer, shape `(O, ...)`, finite or -inf for weights that do not compete, and the number to
keep, at most that of the weights that compete; it gives a bool mask of that shape with exactly so many True. (All weights of the
network compete where the distribution is `globally`: its winners are the best of their layers.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Selection = Callable[[Tensor, int], Tensor]


def per_layer(scores: Tensor, k: int) -> Tensor:
    """The `k` largest of the layer."""
    return keep_largest(scores.flatten(), k).reshape(scores.shape)


def per_filter(scores: Tensor, k: int) -> Tensor:
    """The largest of every filter, each of the `O` filters keeping `k // O` or one more: a constant fan-in.

    The extra places go to the filters whose next best score is largest, the first among equals. (Constant fan-in:
    https://arxiv.org/abs/2305.02299.)

    Of weights chosen before in this way, any `k` up to their number can be chosen again.
    """
    rows = scores.reshape(scores.shape[0], -1)
    each, extra = divmod(k, len(rows))
    # Stable, so the first among equals; a filter is short, sorting it costs little.
    ranked, order = rows.sort(dim=1, descending=True, stable=True)
    keep = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order[:, :each], True)
    if extra:
        lucky = keep_largest(ranked[:, each].contiguous(), extra)
        keep[lucky, order[lucky, each]] = True
    return keep.reshape(scores.shape)


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
