"""Which channels of a network go together: those at one place of a sum, those on both sides of a depthwise filter, and so on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Channels", "Slots"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Channels:
    """What is known of the channels of a tensor.

    axis: of the tensor, the one that channels are on. slots: the slot of each place along it (a flattened image has one slot at
    many places). constants: float64; the value of each place, where it is the same for every input and in every pixel, else NaN.
    """

    axis: int
    slots: Array
    constants: Array


class Slots:
    """The channels of all layers, numbered; those that can only be removed together are united."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        # slot -> why it has to stay, why it is not as constant as its filter: the first reason of each
        self.pins: dict[int, str] = {}
        self.notes: dict[int, str] = {}

    def new(self, count: int) -> Array:
        """`count` slots that have nothing to do with each other."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count)

    def unite(self, left: Array, right: Array) -> None:
        """left[i] and right[i] are removed together, for every i; both (n,)."""
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self._root(one), self._root(other)
            self._parents[max(a, b)] = min(a, b)

    def pin(self, slots: Array, reason: str) -> None:
        for slot in slots.tolist():
            self.pins.setdefault(slot, reason)

    def note(self, slots: Array, reason: str) -> None:
        for slot in slots.tolist():
            self.notes.setdefault(slot, reason)

    def roots(self) -> Array:
        """The number of the group of every slot."""
        return np.array([self._root(slot) for slot in range(len(self._parents))], dtype=np.int64)

    def _root(self, slot: int) -> int:
        parents = self._parents
        while parents[slot] != slot:
            parents[slot] = slot = parents[parents[slot]]
        return slot
