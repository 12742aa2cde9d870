"""Solution paths and the trainings that walked them -> pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tost.analysis.path_density import PathDensities
from tost.analysis.solution_path import FilterPath, LayerPath
from tost.analysis.training_curves import TrainingCurves
from tost.report.figures import COLOURS, new_figure, save
from tost.report.lines import deviation_band, epoch_axis, styles
from tost.report.paths import by_variant, variant_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INSIDE", "OUTSIDE", "save_curves_of_runs_figure", "save_density_figure", "save_path_figure"]

INSIDE, OUTSIDE = COLOURS[0], COLOURS[1]  # the support of Gamma
_COLUMNS = 4
_ALL = 103.0  # percent, and a line there is not at the very edge: a deviation from the mean may reach further, no value does
_CHARACTER, _HANDLE = 0.072, 0.5  # inches in a legend: of a character of this size, and of what else an entry holds


def save_path_figure(found: FilterPath, path: str | Path) -> None:
    """||W_o||_2 of every filter against the epoch, a panel a layer: in one colour while it is in the support, else in another.

    Fig. 1 of https://arxiv.org/abs/2007.02010.
    """
    from matplotlib.lines import Line2D

    figure, places = _panels(len(found.layers), width=3.6, height=2.7)
    figure.suptitle(f"Filters along the solution path: {found.title}")
    for axes, layer in zip(places, found.layers, strict=False):
        _norms(axes, found.epochs, layer)
        axes.set_title(f"{layer.name}: {layer.inside[-1].count('1')} of {layer.filters} in the support", fontsize=9)
        axes.set_ylabel("$||W_o||_2$")
    marks = [Line2D([], [], color=INSIDE, label="in the support"), Line2D([], [], color=OUTSIDE, label="outside")]
    figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save(figure, path)


def _norms(axes: Axes, epochs: Sequence[int], layer: LayerPath) -> None:
    from matplotlib.collections import LineCollection

    # a piece has the colour of its end: what was recorded there happened in the epoch before
    pieces: dict[str, list[list[tuple[float, float]]]] = {"0": [], "1": []}
    for i in range(1, len(epochs)):
        for o, inside in enumerate(layer.inside[i]):
            pieces[inside].append([(epochs[i - 1], layer.norms[i - 1][o]), (epochs[i], layer.norms[i][o])])
    many = layer.filters > 40
    for inside, colour in (("0", OUTSIDE), ("1", INSIDE)):
        lines = LineCollection(pieces[inside], colors=colour, linewidths=0.5 if many else 1.1, alpha=0.5 if many else 0.9)
        axes.add_collection(lines, autolim=True)
    if len(epochs) == 1:
        colours = [INSIDE if inside == "1" else OUTSIDE for inside in layer.inside[0]]
        axes.scatter([epochs[0]] * layer.filters, layer.norms[0], color=colours, s=8)
    axes.autoscale_view()
    axes.set_ylim(bottom=0)
    epoch_axis(axes)
    axes.grid(alpha=0.3)


def save_curves_of_runs_figure(found: TrainingCurves, path: str | Path) -> None:
    """Training loss, test accuracy and, of SplitLBI, density against the epoch: mean and standard deviation of each setting.

    Figs. 3, 4 and 6 of https://arxiv.org/abs/2007.02010.
    """
    panels = [("train_loss", "training loss", 1.0), ("test_accuracy", "test accuracy, %", 100.0)]
    if any(density is not None for run in found.runs for density in run.support_density):
        panels.append(("support_density", "weights in the support, %", 100.0))
    figure, places = _panels(len(panels), width=4.4, height=3.4)
    figure.suptitle(f"Training: {found.title}")
    for axes, (name, label, scale) in zip(places, panels, strict=False):
        for colour, _, variant in styles([run.variant for run in found.runs]):
            group = by_variant(found.runs)[variant]
            values = _by_epoch((run.epochs, getattr(run, name)) for run in group)
            if values:
                scaled = {epoch: [scale * value for value in of_epoch] for epoch, of_epoch in values.items()}
                deviation_band(axes, scaled, colour, variant_name(group))
        axes.set_ylabel(label)
        if name == "support_density":
            axes.set_ylim(bottom=0)
        if name != "train_loss":
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]), top=min(_ALL, axes.get_ylim()[1]))
        epoch_axis(axes)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    _legend(figure, places[0], any(len(group) > 1 for group in by_variant(found.runs).values()))
    save(figure, path)


def save_density_figure(found: PathDensities, path: str | Path) -> None:
    """Percent of the weights in the support against the epoch: mean and standard deviation over the seeds of each setting.

    A panel for all layers together and one for each single layer. Fig. 8 of https://arxiv.org/abs/2007.02010.
    """
    figure, places = _panels(
        1 + len(found.layers), width=5.5 if not found.layers else 3.6, height=3.6 if not found.layers else 2.7
    )
    figure.suptitle(f"Density along the path: {found.title}")
    for axes, layer in zip(places, (None, *found.layers), strict=False):
        for colour, _, variant in styles([run.variant for run in found.runs]):
            group = by_variant(found.runs)[variant]
            of_panel = [(run.epochs, run.overall if layer is None else run.layers.get(layer, ())) for run in group]
            values = _by_epoch((epochs, densities) for epochs, densities in of_panel if densities)
            percents = {epoch: [100 * value for value in of_epoch] for epoch, of_epoch in values.items()}
            if percents:
                deviation_band(axes, percents, colour, variant_name(group))
        if found.layers:
            axes.set_title(layer or "all layers", fontsize=9)
        axes.set_ylabel("weights in the support, %")
        axes.set_ylim(bottom=0, top=min(_ALL, axes.get_ylim()[1]))
        epoch_axis(axes)
        axes.grid(alpha=0.3)
    _legend(figure, places[0], any(len(group) > 1 for group in by_variant(found.runs).values()))
    save(figure, path)


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels, of these inches each, in lines; below them is room for a legend."""
    rows = math.ceil(count / _COLUMNS)
    columns = math.ceil(count / rows)
    figure = new_figure(max(width * columns, 6.0), height * rows + 0.9)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[count:]:
        axes.set_visible(False)
    return figure, places


def _by_epoch(runs: Iterable[tuple[Sequence[int], Sequence[float | None]]]) -> dict[float, list[float]]:
    """Epoch -> the values that there are, in order."""
    values: dict[float, list[float]] = {}
    for epochs, of_run in runs:
        for epoch, value in zip(epochs, of_run, strict=True):
            if value is not None:
                values.setdefault(epoch, []).append(value)
    return dict(sorted(values.items()))


def _legend(figure: Figure, axes: Axes, several: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    title = "mean, and standard deviation over the seeds" if several else None
    widest = _CHARACTER * max(map(len, labels), default=0) + _HANDLE
    columns = min(3, max(1, int(figure.get_figwidth() / widest)))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8, title=title, title_fontsize=8, frameon=False
    )
