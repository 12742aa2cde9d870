"""Variants that keep different numbers of weights -> accuracy against density, and against the epoch of their masks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tost.grid import Cell, Grid
from tost.paired import mean_and_spread
from tost.report.figures import new_figure, save
from tost.report.grids import cell_labels, densities_of, grid_title, several_densities
from tost.report.lines import epoch_axis, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["has_densities", "has_epochs", "save_densities_figure", "save_epochs_figure"]

_AT = "at"  # of a variant: the epoch of the training that found its masks
_DECADES = 20  # beyond this ratio densities lie on a logarithmic axis
_LEGEND = 30  # letters in a line of it: long names must not take the panels' room


def has_densities(grid: Grid) -> bool:
    """Whether in some cell variants differ in how many weights they keep, dense ones aside."""
    return any(several_densities(grid, cell) for cell in grid.cells)


def has_epochs(grid: Grid) -> bool:
    """Whether variants differ in nothing but the epoch that their masks are of."""
    return bool(_series(grid))


def save_densities_figure(grid: Grid, path: str | Path) -> None:
    """Test accuracy against weights kept: mean and standard deviation of each variant in both, a line for a dense one.

    A panel for each cell. Fig. 5 of https://arxiv.org/abs/2007.02010.
    """
    rows = math.ceil(len(grid.cells) / 3)
    columns = math.ceil(len(grid.cells) / rows)
    figure = new_figure(4.2 * columns + 2.4, 3.4 * rows + 0.8)
    figure.suptitle(grid_title(grid), fontsize=11)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (cell, label) in zip(places, cell_labels(grid).items(), strict=False):
        for colour, marker, name in styles(list(grid.variants)):
            if not (accuracies := _accuracies(grid, cell, name)):
                continue
            (accuracy, spread), (kept, width) = mean_and_spread(accuracies), mean_and_spread(_kept(grid, cell, name))
            if kept == 100:
                axes.axhline(accuracy, color=colour, linestyle="--", linewidth=1.2, label=name)
            else:
                axes.errorbar(kept, accuracy, spread, width, color=colour, marker=marker, linestyle="", capsize=2, label=name)
        sparse = densities_of(grid, cell)
        if sparse and max(sparse) > _DECADES * min(sparse):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("weights kept, %")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(label if len(grid.cells) > 1 else "", fontsize=9)
        axes.margins(y=0.1)  # a dashed line is not at the very edge
        axes.grid(alpha=0.3)
    for axes in places[len(grid.cells) :]:
        axes.set_visible(False)
    _legend(figure, places[0])
    save(figure, path)


def save_epochs_figure(grid: Grid, path: str | Path) -> None:
    """Test accuracy, and weights kept, against the epoch that the masks are of; dashed lines for variants without one.

    A row for each cell. Fig. 7 of https://arxiv.org/abs/2007.02010.
    """
    series = _series(grid)
    drawn = {name for names in series.values() for name in names.values()}
    others = [name for name in grid.variants if name not in drawn]
    figure = new_figure(11.5, 3.4 * len(grid.cells) + 0.8)
    figure.suptitle(grid_title(grid), fontsize=11)
    places = figure.subplots(len(grid.cells), 2, squeeze=False)
    for row, (cell, title) in zip(places, cell_labels(grid).items(), strict=True):
        for axes, name, values in ((row[0], "test accuracy, %", _accuracies), (row[1], "weights kept, %", _kept)):
            for colour, marker, label in styles([*series, *others]):
                points = {epoch: values(grid, cell, name) for epoch, name in series.get(label, {}).items()}
                points = {epoch: found for epoch, found in points.items() if found}
                if points:
                    means, spreads = zip(*map(mean_and_spread, points.values()), strict=True)
                    axes.errorbar(list(points), means, spreads, color=colour, marker=marker, capsize=2, label=label)
                elif label in others and (found := values(grid, cell, label)):
                    axes.axhline(mean_and_spread(found)[0], color=colour, linestyle="--", linewidth=1.2, label=label)
            epoch_axis(axes)
            axes.set_xlabel("epoch that the masks are of")
            axes.set_ylabel(name)
            axes.set_title(title if len(grid.cells) > 1 else "", fontsize=9)
            axes.margins(y=0.1)  # a dashed line is not at the very edge
            axes.grid(alpha=0.3)
    _legend(figure, places[0][0])
    save(figure, path)


def _series(grid: Grid) -> dict[str, dict[int, str]]:
    """What variants with the same changes but for the epoch share -> epoch -> variant; of at least two epochs.

    Of the options of searches it names only those that not all of them have.
    """
    series: dict[tuple[tuple[str, str], ...], dict[int, str]] = {}
    for name, changes in grid.variants.items():
        if isinstance(epoch := changes.get(_AT), int):
            shared = tuple(sorted((field, str(value)) for field, value in _flat(changes).items() if field != _AT))
            series.setdefault(shared, {})[epoch] = name
    several = {shared: names for shared, names in series.items() if len(names) > 1}
    found = {}
    for shared, names in several.items():
        said = [(f, value) for f, value in shared if not f.startswith("search ") or any((f, value) not in s for s in several)]
        found[", ".join(f"{field} {value}" for field, value in said)] = dict(sorted(names.items()))
    return found


def _flat(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings in mappings as one: {"search": {"lr": 1}} is {"search lr": 1}."""
    flat: dict[str, Any] = {}
    for field, value in changes.items():
        inner = _flat(value) if isinstance(value, Mapping) else None
        flat |= {field: value} if inner is None else {f"{field} {name}": each for name, each in inner.items()}
    return flat


def _accuracies(grid: Grid, cell: Cell, name: str) -> list[float]:
    """In percent."""
    return [100 * accuracy for accuracy in grid.accuracies(cell, name)]


def _kept(grid: Grid, cell: Cell, name: str) -> list[float]:
    """Weights, in percent."""
    return [100 * run.accounting.density for run in grid.runs(cell, name)]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    title = "mean ± standard\ndeviation of seeds"
    names = [textwrap.fill(name, _LEGEND) for name in names]
    figure.legend(handles, names, loc="outside right center", fontsize=8, title=title, title_fontsize=8)
