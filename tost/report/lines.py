"""Colours, groups and bands that pictures of several runs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from tost.paired import mean_and_spread
from tost.report.figures import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["band", "deviation_band", "epoch_axis", "grouped", "styles"]

Item = TypeVar("Item")


def styles(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """(colour, marker, name) of each different name, in order."""
    n = len(COLOURS)
    return [(COLOURS[i % n], MARKERS[(i + i // n) % len(MARKERS)], name) for i, name in enumerate(dict.fromkeys(names))]


def grouped(items: Sequence[Item], key: Callable[[Item], float]) -> dict[float, list[Item]]:
    """Number -> the items of that number, in order."""
    groups: dict[float, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def band(axes: Axes, values: Mapping[float, Sequence[float]], colour: str, marker: str, label: str, linestyle: str = "-") -> None:
    """A line through the means, and a band from the least to the largest value of the seeds.

    Markers of a line that is not solid are hollow: one point alone shows no dashes.
    """
    means = [mean_and_spread(group)[0] for group in values.values()]
    fill = colour if linestyle == "-" else "white"
    axes.plot(list(values), means, color=colour, marker=marker or None, mfc=fill, markersize=4, linestyle=linestyle, label=label)
    axes.fill_between(list(values), list(map(min, values.values())), list(map(max, values.values())), color=colour, alpha=0.15)


def deviation_band(axes: Axes, values: Mapping[float, Sequence[float]], colour: str, label: str) -> None:
    """A line through the means, and a band of one standard deviation of the seeds to either side."""
    places = list(values)
    means, spreads = zip(*map(mean_and_spread, values.values()), strict=True)
    axes.plot(places, means, color=colour, linewidth=1.4, marker="." if len(places) == 1 else None, label=label)
    low, high = ([mean + sign * spread for mean, spread in zip(means, spreads, strict=True)] for sign in (-1, 1))
    axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)


def epoch_axis(axes: Axes) -> None:
    """Whole epochs below a curve, also where there is but one."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch (0: initialisation)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
