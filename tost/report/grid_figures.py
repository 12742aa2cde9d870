"""A comparison -> pictures: differences with their intervals, accuracy against sparsity, training curves."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tost.grid import Cell, Grid
from tost.model_address import short_name
from tost.paired import Paired, mean_and_spread
from tost.report.figures import COLOURS, MARKERS, new_figure, save
from tost.report.grids import cell_labels, grid_title
from tost.report.structure_figures import has_densities, has_epochs, save_densities_figure, save_epochs_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["grid_pictures", "save_curves_figure", "save_forest_figure", "save_sparsity_figure"]

_VERDICTS = {"won": COLOURS[0], "lost": COLOURS[1], "undecided": "0.45"}
_LINES = ("-", "--", ":")
_ROW = 0.24  # inches
_PANELS = 7  # in a line
_WIDE = 60  # points; an axis that goes farther is linear only around 0


def grid_pictures(grid: Grid) -> Mapping[str, Callable[[Grid, Path], None]]:
    """What a picture's name has behind that of the record -> draws it: those that say something of this grid, the first alone."""
    named: dict[str, Callable[[Grid, Path], None]] = {}
    if len(grid.cells) == 1:
        named["curves"] = save_curves_figure
    if any(name != baseline for baseline in grid.baselines for name in grid.variants):
        named["forest"] = save_forest_figure
    if len({cell.density for cell in grid.cells}) > 1 or not named:
        named["sparsity"] = save_sparsity_figure
    if has_densities(grid):
        named["densities"] = save_densities_figure
    if has_epochs(grid):
        named["epochs"] = save_epochs_figure
    first = next(iter(named))
    return {"" if name == first else name: draw for name, draw in named.items()}


class _Row(NamedTuple):
    """A line of a forest plot."""

    label: str
    difference: Paired
    pooled: bool = False


def save_forest_figure(grid: Grid, path: str | Path) -> None:
    """Paired differences in points with their 95% intervals, of every variant in every cell, and of all cells together.

    Where there are more cells than variants, a cell is a row and a variant a panel; else the other way round. The panels of a
    further baseline lie below those of the first.
    """
    blocks = [_panels(grid, baseline) for baseline in grid.baselines]
    columns = min(max(map(len, blocks)), _PANELS)
    lines = [block[i : i + columns] for block in blocks for i in range(0, len(block), columns)]
    panels = [panel for line in lines for panel in line]
    longest = max(len(row.label) for _, rows in panels for row in rows)
    width = (2.1 if columns > 2 else 4.4) * columns + 0.065 * longest + 0.4
    height = max(_ROW * max(len(rows) for _, rows in panels), 0.7) + 0.95
    figure = new_figure(max(width, 6.0), len(lines) * height + 0.9)
    figure.suptitle(f"Paired differences in test accuracy\n{grid_title(grid)}", fontsize=11)
    places = figure.subplots(len(lines), columns, squeeze=False, sharey="row")
    edge = _edge([row for _, rows in panels for row in rows])
    for all_axes, line in zip(places, lines, strict=True):
        for axes, (title, rows) in zip(all_axes, line, strict=False):
            _forest(axes, rows, edge)
            parts = [textwrap.fill(part, 30 if columns > 2 else 60) for part in title.split("\n")]
            axes.set_title("\n".join(parts), fontsize=8)
        for axes in all_axes[len(line) :]:
            axes.set_visible(False)
    figure.legend(handles=_verdict_marks(), loc="outside lower center", ncols=2 if columns == 1 else 4, fontsize=8, frameon=False)
    save(figure, path)


def _panels(grid: Grid, baseline: str) -> list[tuple[str, list[_Row]]]:
    """Title and rows of each."""
    labels, names = cell_labels(grid), [name for name in grid.variants if name != baseline]
    together = f"all {len(labels)} cells"
    panels: list[tuple[str, list[_Row]]] = []
    if len(labels) > len(names):
        for name in names:
            rows = [_Row(label, grid.against(cell, name, baseline)) for cell, label in labels.items()]
            panels.append((f"{name} minus {baseline}", [*rows, _Row(together, grid.pooled(name, baseline), pooled=True)]))
        return panels
    difference = f"{names[0] if len(names) == 1 else 'variant'} minus {baseline}"
    for cell, label in labels.items():
        title = difference if len(labels) == 1 else f"{label}\n{difference}"
        panels.append((title, [_Row(name, grid.against(cell, name, baseline)) for name in names]))
    if len(labels) > 1:
        rows = [_Row(name, grid.pooled(name, baseline), pooled=True) for name in names]
        panels.append((f"{together}\n{difference}", rows))
    return panels


def _forest(axes: Axes, rows: Sequence[_Row], edge: float) -> None:
    if edge > _WIDE:
        axes.set_xscale("symlog", linthresh=5)
        ticks = [tick for tick in (2, 10, 40) if tick < edge]
        axes.set_xticks([*(-tick for tick in reversed(ticks)), 0, *ticks], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(0, color="0.2", linewidth=0.9)
    places = range(len(rows) - 1, -1, -1)
    for y, (_, found, pooled) in zip(places, rows, strict=True):
        if found.mean is None:
            axes.annotate("no pair", (0, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7, color="0.3")
            continue
        colour = _VERDICTS[found.verdict]
        if found.low is not None and found.high is not None:
            bounds = (100 * found.low, 100 * found.high)
            axes.plot(
                [max(-edge, min(edge, bound)) for bound in bounds],
                [y, y],
                color=colour,
                linewidth=2.6 if pooled else 1.6,
                solid_capstyle="butt",
            )
            for bound, arrow in zip(bounds, ("<", ">"), strict=True):
                if abs(bound) > edge:  # the interval goes on
                    axes.plot([math.copysign(edge, bound)], [y], marker=arrow, color=colour, markersize=5)
        axes.plot([100 * found.mean], [y], marker="D" if pooled else "o", color=colour, markersize=6 if pooled else 5)
    axes.set_xlabel("points" + (", linear from -5 to 5" if edge > _WIDE else ""), fontsize=8)
    axes.set_xlim(-edge * 1.06, edge * 1.06)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks(list(places), [row.label for row in rows], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)


def _edge(rows: Sequence[_Row]) -> float:
    """Where the axis ends: beyond every mean, and beyond the intervals unless a few are far wider than all else."""
    means = [abs(100 * row.difference.mean) for row in rows if row.difference.mean is not None]
    bounds = [abs(100 * bound) for row in rows for bound in (row.difference.low, row.difference.high) if bound is not None]
    farthest = max(means, default=0.0)
    return max(min(max(bounds, default=0.0), 3 * max(farthest, statistics.median(bounds or [0.0]))), 1.05 * farthest, 0.5)


def _verdict_marks() -> list[Line2D]:
    from matplotlib.lines import Line2D

    said = {"won": "won: interval above 0", "lost": "lost: interval below 0", "undecided": "undecided"}
    marks = [Line2D([], [], color=_VERDICTS[name], marker="o", linewidth=1.6, label=text) for name, text in said.items()]
    return [*marks, Line2D([], [], color="none", label="bars: 95% t-interval over pairs (diamond: cells pooled)")]


def save_sparsity_figure(grid: Grid, path: str | Path) -> None:
    """Test accuracy against sparsity, mean and standard deviation of each variant; a panel for each network, data set, method."""
    panels: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in grid.cells:
        panels.setdefault((cell.model, cell.dataset, cell.method), []).append(cell)
    rows = math.ceil(len(panels) / 3)
    columns = math.ceil(len(panels) / rows)
    figure = new_figure(3.6 * columns + 2.4, 3.3 * rows + 0.8)
    figure.suptitle(grid_title(grid), fontsize=11)
    all_axes = figure.subplots(rows, columns, squeeze=False)
    places = list(all_axes.flat)
    for axes, ((model, dataset, method), cells) in zip(places, panels.items(), strict=False):
        _accuracies(axes, grid, sorted(cells, key=lambda cell: -cell.density))
        axes.set_title(f"{short_name(model)} on {dataset}" + (f", {method}" if method else ""), fontsize=9)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for row in all_axes:
        row[0].set_ylabel("test accuracy, %")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right center", fontsize=8, title="mean ± standard\ndeviation of seeds", title_fontsize=8
    )
    save(figure, path)


def _accuracies(axes: Axes, grid: Grid, cells: Sequence[Cell]) -> None:
    shift = 0.05 if len(grid.variants) > 1 else 0.0  # side by side, or bars would hide each other
    for i, name in enumerate(grid.variants):
        found = [(x, grid.accuracies(cell, name)) for x, cell in enumerate(cells)]
        points = [(x, *mean_and_spread(accuracies)) for x, accuracies in found if accuracies]
        axes.errorbar(
            [x + shift * (i - (len(grid.variants) - 1) / 2) for x, _, _ in points],
            [100 * mean for _, mean, _ in points],
            [100 * spread for _, _, spread in points],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle=_LINES[i // len(COLOURS) % len(_LINES)],
            markersize=5,
            linewidth=1.3,
            capsize=2,
            label=name,
        )
    axes.set_xticks(range(len(cells)), [f"{100 * (1 - cell.density):g}" for cell in cells])
    axes.set_xlabel("weights removed, %")
    axes.grid(alpha=0.3)


def save_curves_figure(grid: Grid, path: str | Path) -> None:
    """Test accuracy over the steps in the first cell, a thin line a run, a thick one for the mean; beside it the step times."""
    cell, timed = grid.cells[0], bool(grid.step_times)
    figure = new_figure(12 if timed else 7.5, 4.8)
    panels = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    _curves(panels[0], grid, cell)
    if timed:
        _bars(panels[1], grid)
    save(figure, path)


def _curves(axes: Axes, grid: Grid, cell: Cell) -> None:
    for i, name in enumerate(grid.variants):
        runs, colour, line = grid.runs(cell, name), COLOURS[i % len(COLOURS)], _LINES[i // len(COLOURS) % len(_LINES)]
        points: dict[int, list[float]] = {}
        for run in runs:
            curve = [(h["step"], 100 * h["test_accuracy"]) for h in run.history if "test_accuracy" in h]
            axes.plot([s for s, _ in curve], [a for _, a in curve], color=colour, alpha=0.35, linewidth=0.9)
            for step, accuracy in curve:
                points.setdefault(step, []).append(accuracy)
        mean = {step: statistics.fmean(a) for step, a in points.items() if len(a) == len(runs)}
        final = f"{statistics.fmean(grid.accuracies(cell, name)) * 100:.2f}%, " if runs else ""
        lost = f", {grid.diverged(cell, name)} diverged" if grid.diverged(cell, name) else ""
        label = f"{name} ({final}{len(runs)} run{'s' if len(runs) != 1 else ''}{lost})"
        axes.plot(list(mean), list(mean.values()), color=colour, linewidth=2.2, linestyle=line, label=label)
    axes.set_title(grid_title(grid, cell), fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("test accuracy of the finalized network, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8, title="thin: a run, thick: the mean", title_fontsize=8)


def _bars(axes: Axes, grid: Grid) -> None:
    times = grid.step_times
    labels = [t.backend.replace("-", "-\n") + ("\nghosts alive" if t.ghosts else "") for t in times]
    errors = [[t.ms - t.ms_low for t in times], [t.ms_high - t.ms for t in times]]
    bars = axes.bar(
        labels, [t.ms for t in times], color=[COLOURS[1] if t.ghosts else COLOURS[0] for t in times], yerr=errors, capsize=3
    )
    axes.bar_label(bars, [f"{t.ms:.0f}" for t in times], padding=2)
    axes.set_title(f"a training step, batch of {grid.base.batch_size}", fontsize=10)
    axes.set_ylabel("ms, median and quartiles")
    axes.tick_params(axis="x", labelsize=8)
