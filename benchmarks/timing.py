"""Interleaved timing: every variant once a round, in an order that changes, so that a slow moment hits all of them.

Two variants are compared round by round: the median and the quartiles are those of the ratios, not a ratio of medians, because
what disturbs a machine lasts longer than a round and divides out.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
Measure = Callable[[Callable[[], object], int], float]  # (call, repeats) -> milliseconds a call

_SHORTEST_MS = 2.0  # shorter calls are repeated within a round, and their mean is taken
_MOST_REPEATS = 50


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of one number a round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Raises ValueError if there are none."""
        if not samples:
            raise ValueError("samples: expected at least one, got none")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Times:
    """ms: variant -> milliseconds a call, one entry a round."""

    ms: Mapping[str, tuple[float, ...]]

    def total(self, *names: str) -> tuple[float, ...]:
        """What the variants `names` took together, round by round."""
        return tuple(sum(parts) for parts in zip(*(self.ms[name] for name in names), strict=True))

    def summary(self, *names: str) -> Summary:
        """Milliseconds of the variants `names` together."""
        return Summary.of(self.total(*names))

    def ratio(self, slow: Sequence[str], fast: Sequence[str]) -> Summary:
        """How many times longer the variants `slow` take together than `fast` together: quantiles of the rounds' ratios."""
        return Summary.of([a / b for a, b in zip(self.total(*slow), self.total(*fast), strict=True)])

    def fastest(self, candidates: Sequence[Sequence[str]]) -> Sequence[str]:
        """The candidate (variants that belong together) with the smallest median."""
        return min(candidates, key=lambda names: self.summary(*names).median)


def clock_for(threads: int) -> Clock:
    """Seconds. One thread: its own CPU time, which other programs disturb less; more: the wall clock."""
    return time.thread_time if threads == 1 else time.perf_counter


def by_clock(clock: Clock) -> Measure:
    """Measure by looking at a clock before and after."""

    def measure(call: Callable[[], object], repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return 1e3 * (clock() - start) / repeats

    return measure


def interleave(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Clock | None = None,
    *,
    seed: int = 0,
    shortest_ms: float = _SHORTEST_MS,
    measure: Measure | None = None,
) -> Times:
    """Call every variant once a round, in an order shuffled anew each round.

    Before the measured rounds each is called once to warm up, and once more to see whether it is so short that several calls
    make one measurement (their mean counts).

    Args:
        variants: name -> what is timed.
        rounds: measured rounds, at least 1.
        clock: seconds, see `clock_for`; or None where `measure` is given.
        measure: another way to time calls, such as a GPU's events.
        seed: of the orders.
        shortest_ms: calls shorter than this are repeated, up to 50 times; 0: never.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    if not variants:
        raise ValueError("variants: expected at least one, got none")
    if measure is None:
        if clock is None:
            raise ValueError("clock: expected one, or a way to measure, got neither")
        measure = by_clock(clock)
    repeats = dict.fromkeys(variants, 1)
    for name, call in variants.items():
        call()
        if shortest_ms > 0:
            once = max(measure(call, 1), shortest_ms / _MOST_REPEATS)
            repeats[name] = max(1, math.ceil(shortest_ms / once))
    taken: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffler = list(variants), random.Random(seed)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            taken[name].append(measure(variants[name], repeats[name]))
    return Times({name: tuple(ms) for name, ms in taken.items()})
