"""The density to reach at a point of an iterative method: pure functions of (final density, progress in (0, 1])."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[float, float], float]


def exponential(density: float, progress: float) -> float:
    """`density ** progress`: every step keeps the same fraction of what is left."""
    return float(density**progress)


def linear(density: float, progress: float) -> float:
    """`1 - progress * (1 - density)`: every step removes the same number."""
    return 1.0 - progress * (1.0 - density)


def targets(schedule: Schedule, steps: int, density: float, total: int, k: int) -> list[int]:
    """How many weights to keep after each of `steps` steps: never rising, the last exactly `k`."""
    counts = [max(k, round(schedule(density, t / steps) * total)) for t in range(1, steps)]
    return [*counts, k]
