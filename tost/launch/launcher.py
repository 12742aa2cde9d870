"""What a launcher is, whatever it launches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Protocol, TypeVar

__all__ = ["Item", "Launcher", "Output"]

Item = TypeVar("Item", bound=Hashable)
Output = TypeVar("Output")


class Launcher(Protocol):
    """Does one piece of work on several items."""

    def outcomes(self, work: Callable[[Item], Output], items: Sequence[Item]) -> Generator[tuple[Item, Output | Exception]]:
        """Each item with what `work` returned or raised, as they end: an error of one is no reason to drop the others.

        Whatever is left of the work is ended when the generator is closed, unless the launcher says otherwise.

        Args:
            work: what a new process can import; so are items and outputs what it can send.
            items: all different.
        """
        ...
