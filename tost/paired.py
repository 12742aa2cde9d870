"""Statistics of paired runs: mean, spread, and the 95% t-interval of the differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom
_T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z975 = 1.959964


def t975(degrees: int) -> float:
    """The factor of a two-sided 95% interval with `degrees` degrees of freedom (at least 1)."""
    if degrees < 1:
        raise ValueError(f"degrees: expected at least 1, got {degrees}")
    if degrees <= len(_T975):
        return _T975[degrees - 1]
    z, n = _Z975, degrees  # Cornish-Fisher, exact to 1e-4 here
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Paired:
    """Differences `variant - baseline` over pairs that share seed, mask, initial weights and batches.

    Attributes:
        differences: one a pair.
        mean: of the differences.
        low, high: the 95% t-interval of the mean; None for a single pair, which says nothing about spread.
        wins, losses: pairs in which the variant was strictly better or worse.
    """

    differences: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    wins: int
    losses: int


def paired(baseline: Sequence[float], variant: Sequence[float]) -> Paired:
    """Compare `variant[i]` with `baseline[i]`, higher being better.

    Raises:
        ValueError: no pairs, or lengths that differ.
    """
    if not baseline or len(baseline) != len(variant):
        raise ValueError(f"variant: expected as many values as the baseline (at least 1), got {len(variant)}")
    differences = tuple(v - b for b, v in zip(baseline, variant, strict=True))
    mean, spread = mean_and_spread(differences)
    low = high = None
    if len(differences) > 1:
        half = t975(len(differences) - 1) * spread / math.sqrt(len(differences))
        low, high = mean - half, mean + half
    return Paired(differences, mean, low, high, sum(d > 0 for d in differences), sum(d < 0 for d in differences))
