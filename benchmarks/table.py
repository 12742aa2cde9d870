"""Markdown tables that grow a line at a time: a long measurement shows how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.timing import Summary


class Table:
    """Prints its head at once and each row as it comes."""

    def __init__(self, title: str, columns: Sequence[str]) -> None:
        print(f"\n### {title}\n")
        self._columns = len(columns)
        self._line(columns)
        self._line(["---"] * len(columns))

    def row(self, *cells: str) -> None:
        """Raises ValueError if there are not as many cells as columns."""
        if len(cells) != self._columns:
            raise ValueError(f"cells: expected {self._columns}, got {len(cells)}")
        self._line(cells)

    @staticmethod
    def _line(cells: Sequence[str]) -> None:
        print("| " + " | ".join(cells) + " |", flush=True)


def ms(value: Summary | float) -> str:
    """Milliseconds, three digits or two decimals."""
    number = value.median if isinstance(value, Summary) else value
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 0.1 else f"{number:.3f}"


def times(ratio: Summary, spread: bool = False) -> str:
    """E.g. `4.8x`, or with its quartiles `4.8x [4.7, 4.9]`."""
    return f"{ratio.median:.2f}x" + (f" [{ratio.low:.2f}, {ratio.high:.2f}]" if spread else "")


def percent(fraction: float) -> str:
    """0.95 -> 95%."""
    return f"{100 * fraction:g}%"
