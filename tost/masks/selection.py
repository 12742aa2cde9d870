"""Which weights of a layer are kept: exactly the k best, whatever the ties.

A selection takes the scores of one layer, shape `(O, ...)`, finite or -inf for weights that do not compete, and the number to
keep, at most that of the weights that compete; it gives a bool mask of that shape with exactly so many True. (All weights of the
network compete where the distribution is `globally`: its winners are the best of their layers.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Selection = Callable[[Tensor, int], Tensor]


def per_layer(scores: Tensor, k: int) -> Tensor:
    """The `k` largest of the layer."""
    return keep_largest(scores.flatten(), k).reshape(scores.shape)


def per_filter(scores: Tensor, k: int) -> Tensor:
    """The largest of every filter, each of the `O` filters keeping `k // O` or one more: a constant fan-in.

    The extra places go to the filters whose next best score is largest, the first among equals. (Constant fan-in:
    https://arxiv.org/abs/2305.02299.) A filter in which fewer weights compete keeps them all, and its places go to the others
    in the same way.
    """
    rows = scores.reshape(scores.shape[0], -1)
    # Stable, so the first among equals; a filter is short, sorting it costs little.
    ranked, order = rows.sort(dim=1, descending=True, stable=True)
    most = (rows > -torch.inf).sum(1)
    counts = torch.zeros_like(most)
    while left := k - int(counts.sum()):
        free = (counts < most).nonzero().flatten()
        each = left // len(free)
        if each == 0:  # one more for some
            free, each = free[keep_largest(ranked[free, counts[free]], left)], 1
        counts[free] = torch.minimum(counts[free] + each, most[free])
    chosen = torch.arange(rows.shape[1], device="cpu") < counts[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen).reshape(scores.shape)


def keep_largest(scores: Tensor, k: int) -> Tensor:
    """True for exactly `k` entries of `scores`, the largest; among equal scores the first.

    Args:
        scores: shape (n,), float32 or float64, CPU, no NaN.
        k: 0 <= k <= n.

    Returns:
        Bool tensor of shape (n,) with exactly `k` True.

    Linear time, nothing is sorted. `torch.topk` would leave it open WHICH of equal scores it takes, and it may differ between
    devices and versions: masks would not be reproducible.
    """
    n = scores.numel()
    if not 0 <= k <= n:
        raise ValueError(f"k: expected 0 <= k <= {n}, got {k}")
    if k == 0 or k == n:
        return torch.full((n,), k == n, dtype=torch.bool, device="cpu")
    threshold = _kth_largest(scores.numpy(), k)
    keep = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    keep[ties[: k - int(keep.count_nonzero())]] = True
    return keep


_SAMPLE = 2**16


def _kth_largest(values: NDArray[Any], k: int) -> float:
    """The `k`-th largest of `values`, 1 <= k <= n.

    Of many values, a sorted sample gives two bounds between which it almost surely lies, and only what lies between them is
    partitioned (docs/notes/pruning.md).
    """
    n = len(values)
    if n > 16 * _SAMPLE:
        sample = np.sort(values[:: n // _SAMPLE])
        place = round((1 - k / n) * len(sample))
        margin = 4 * round(len(sample) ** 0.5)  # at least eight standard deviations of the place of a random sample
        # -inf stands for weights that do not compete: not looked at, for there may be very many
        low = sample[place - margin] if place > margin else -np.inf
        low, high = max(low, np.finfo(values.dtype).min), sample[place + margin] if place + margin < len(sample) else np.inf
        inside = values >= low
        above = int(np.count_nonzero(inside))
        inside &= values <= high
        between = values[inside]
        above -= len(between)
        if above < k <= above + len(between):
            values, k = between, k - above
            highest, lowest = int(np.count_nonzero(values == high)), int(np.count_nonzero(values == low))
            # Many equal values make a partition slow; they gather at the bounds, for the sample is full of them too.
            if k <= highest:
                return float(high)
            if k > len(values) - lowest:
                return float(low)
            values, k = values[(values > low) & (values < high)], k - highest
    n = len(values)
    return float(np.partition(values, n - k)[n - k])
