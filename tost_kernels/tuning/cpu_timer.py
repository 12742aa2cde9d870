"""The timer of CPU trials: a clock around a few calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from tost_kernels.tuning.trial import Trial

_SHORTEST = 1e-3  # seconds: a shorter call is repeated for one measurement
_MOST_REPEATS = 50


def interleaved(trials: Sequence[Trial], rounds: int) -> list[float]:
    """Median milliseconds of each trial, one of each a round, after one unmeasured run.

    One round is a first look at many trials: only the first of them gets an unmeasured run, which warms up what they share.
    """
    if rounds == 1:
        trials[0].run()
        return [1e3 * _seconds(trial) for trial in trials]
    repeats = []
    for trial in trials:
        repeats.append(min(_MOST_REPEATS, 1 + int(_SHORTEST / max(_seconds(trial), 1e-9))))
    taken: list[list[float]] = [[] for _ in trials]
    for _ in range(rounds):
        for trial, count, times in zip(trials, repeats, taken, strict=True):
            times.append(1e3 * _seconds(trial, count) / count)
    return [statistics.median(times) for times in taken]


def _seconds(trial: Trial, count: int = 1) -> float:
    clock = _clock()
    start = clock()
    for _ in range(count):
        trial.run()
    return clock() - start


def _clock() -> Callable[[], float]:
    """On one CPU thread its own time, which other load on the machine disturbs less; else the time of day."""
    if torch.get_num_threads() == 1 and time.get_clock_info("thread_time").resolution <= 1e-6:
        return time.thread_time
    return time.perf_counter
