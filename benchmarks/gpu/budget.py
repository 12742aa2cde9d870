"""Deadlines: a run ends in time, with the most important cases measured and a list of those that were not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence


class Budget:
    """Seconds from now on. clock: seconds, any origin."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._latest: deque[float] = deque(maxlen=3)

    def left(self) -> float:
        """Seconds; negative when it is over."""
        return self._end - self._clock()

    def allows(self, seconds: float | None = None) -> bool:
        """Whether `seconds` are left; None: as long as the longest of the last three cases took (see `took`)."""
        return self.left() > (max(self._latest, default=0.0) if seconds is None else seconds)

    def took(self, seconds: float) -> None:
        """A case took so long. The first ones compile what the others find compiled: they are not remembered for long."""
        self._latest.append(seconds)

    def part(self, share: float) -> Budget:
        """A budget of this share of what is left, which is not longer than this one."""
        return Budget(max(0.0, self.left()) * min(max(share, 0.0), 1.0), self._clock)


def share_of(section: str, remaining: Sequence[str], weights: Mapping[str, float]) -> float:
    """What `section` may have of the time that is left when `remaining` (with itself) are still to run.

    What an earlier section did not need is so divided among those after it.
    """
    return weights[section] / sum(weights[name] for name in remaining)
