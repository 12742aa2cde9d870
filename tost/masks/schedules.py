"""The density to reach at a point of an iterative method: pure functions of (final density, progress in (0, 1]).

A method of one step goes to the final density at once, whatever its schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from tost.checks import number

Schedule = Callable[[float, float], float]


def exponential(density: float, progress: float) -> float:
    """`density ** progress`: every step keeps the same fraction of what is left."""
    return float(density**progress)


def linear(density: float, progress: float) -> float:
    """`1 - progress * (1 - density)`: every step removes the same number."""
    return 1.0 - progress * (1.0 - density)


def one_shot(density: float, progress: float) -> float:
    """`density`, from the first step on: further steps only choose again, among all weights if the method lets them recover."""
    return density


def targets(schedule: Schedule, steps: int, density: float, total: int, k: int) -> list[int]:
    """How many weights to keep after each of `steps` steps: never rising, at most `total`, the last exactly `k`.

    Raises:
        TypeError, ValueError: the schedule gives something else than densities in (0, 1] that never rise.
    """
    densities = [number("schedule", schedule(density, t / steps), above=0.0, most=1.0) for t in range(1, steps)]
    if any(later > earlier for earlier, later in pairwise(densities)):
        raise ValueError(f"schedule: expected densities that never rise, got {', '.join(f'{d:g}' for d in densities)}")
    return [*(max(k, round(d * total)) for d in densities), k]
