"""Statistics of paired runs: mean, spread, the 95% t-interval of the differences, and who won."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        mean: of the differences; None where no pair is left.
        low, high: the 95% t-interval of the mean; None for a single pair, which says nothing about spread.
        wins, losses: pairs in which the variant was strictly better or worse.
        left_out: pairs without a difference, as one of their runs diverged. Nothing else here knows of them.
    """

    differences: tuple[float, ...]
    mean: float | None
    low: float | None
    high: float | None
    wins: int
    losses: int
    left_out: int = 0

    @property
    def verdict(self) -> str:
        """ "won" where the interval lies above 0, "lost" where it lies below, else "undecided".

        A single pair is undecided, and so are pairs that all differ by the same: two accuracies of a thousand images often do by
        chance, and their interval without width would be a certainty that nobody has.
        """
        if self.low is None or self.high is None or self.low == self.high:
            return "undecided"
        return "won" if self.low > 0 else "lost" if self.high < 0 else "undecided"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the verdict."""
        return {**dataclasses.asdict(self), "differences": list(self.differences), "verdict": self.verdict}


def paired(baseline: Sequence[float | None], variant: Sequence[float | None]) -> Paired:
    """Compare `variant[i]` with `baseline[i]`, higher being better; None: there is no value, and the pair is left out.

    Raises:
        ValueError: no pairs, or lengths that differ.
    """
    if not baseline or len(baseline) != len(variant):
        raise ValueError(f"variant: expected as many values as the baseline (at least 1), got {len(variant)}")
    found = [(v, b) for b, v in zip(baseline, variant, strict=True)]
    # rounded: means of the same counts in another order differ in their last bits, and a tie is no win
    differences = tuple(round(v - b, 12) for v, b in found if v is not None and b is not None)
    mean = low = high = None
    if differences:
        mean, spread = mean_and_spread(differences)
        if len(differences) > 1:
            half = t975(len(differences) - 1) * spread / math.sqrt(len(differences))
            low, high = mean - half, mean + half
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return Paired(differences, mean, low, high, wins, losses, len(found) - len(differences))
