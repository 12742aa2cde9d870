"""Calls on inputs that rotate past the L2, captured in a graph, interleaved with those they are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.gpu.suite import Suite
from benchmarks.timing import Summary, Times, interleave

_MOST_COPIES = 16


class Calls(NamedTuple):
    """each: one call for each copy of the inputs. replayed: under a CUDA graph; else launched as a user's program does."""

    each: Sequence[Callable[[], object]]
    replayed: bool = True


def copies_for(size: int, l2_bytes: int) -> int:
    """How many copies of `size` bytes are needed so that each has left the L2 before it is used again; 2 to 16.

    Where there is no such cache one is enough.
    """
    if l2_bytes == 0:
        return 1
    return min(_MOST_COPIES, max(2, math.ceil(2 * l2_bytes / max(size, 1)) + 1))


def timed(suite: Suite, variants: Mapping[str, Calls], rounds: int | None = None) -> Times:
    """Milliseconds a call of every variant, interleaved; replayed ones by the device's events, others by the wall clock."""
    programs: dict[str, Callable[[], object]] = {}
    walls: set[Callable[[], object]] = set()
    for name, calls in variants.items():
        all_of_them = _together(calls.each)
        if calls.replayed:
            programs[name] = suite.device.capture(all_of_them)
        else:
            all_of_them()
            programs[name] = all_of_them
            walls.add(all_of_them)

    def measure(call: Callable[[], object], repeats: int) -> float:
        return (suite.device.wall if call in walls else suite.device.measure)(call, repeats)

    settings = suite.settings
    whole = interleave(programs, rounds or settings.rounds, measure=measure, shortest_ms=settings.shortest_ms)
    return Times({name: tuple(ms / len(variants[name].each) for ms in taken) for name, taken in whole.ms.items()})


def _together(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    def run() -> object:
        return [call() for call in calls]  # kept until all are done: each writes to memory of its own

    return run


def per_second(amount: float, ms: Summary) -> Summary:
    """`amount` a second; the low quartile is that of the slow ones."""
    low, median, high = (1e3 * amount / t for t in (ms.high, ms.median, ms.low))
    return Summary(median, low, high)
