"""Progress bars: on stderr, gone at the end, nothing where stderr is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["percent_bar", "step_bar"]


def step_bar(wanted: bool = True) -> Progress:
    """A bar that counts steps, not yet started; add one task to it."""
    return _bar(wanted, MofNCompleteColumn(), TextColumn("steps"))


def percent_bar(wanted: bool = True) -> Progress:
    """A bar that tells percents, not yet started; add one task to it."""
    return _bar(wanted, TaskProgressColumn())


def _bar(wanted: bool, *count: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal))
