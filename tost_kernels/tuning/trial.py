"""What is timed, and what a timer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tost_kernels.plan import Plan

WHOLE = "whole"  # what the user waits for: forward and backward through autograd, layout changes and all
FINAL_ROUNDS = 5


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        which: a pass of `candidates`, or WHOLE.
        plan: what is tried.
        run: does it once, on the next of its inputs.
        inputs: how many equal inputs `run` takes in turn, so that none is in the cache from the last time.
    """

    which: str
    plan: Plan
    run: Callable[[], object]
    inputs: int = 1


# (trials, rounds) -> milliseconds of each
Timer = Callable[[Sequence[Trial], int], list[float]]


@dataclass(frozen=True)
class Timing:
    """What a whole plan took: milliseconds, forward and the gradients wanted."""

    plan: Plan
    milliseconds: float
