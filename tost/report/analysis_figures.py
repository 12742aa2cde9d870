"""Analyses of pruning -> pictures, those of FORCE (https://arxiv.org/abs/2006.09081)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tost.analysis import Iterations, IterationsPoint, Layers, Recovery, Saliencies
from tost.paired import mean_and_spread
from tost.report.analyses import setting_title
from tost.report.figures import new_figure, save
from tost.report.layers import layer_figure
from tost.report.lines import band, grouped, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_iterations_figure", "save_layers_figure", "save_recovery_figure", "save_saliency_figure"]

_BAND: dict[str, Any] = {"title": "mean; band: least to largest of the seeds", "title_fontsize": 8, "fontsize": 8}


def save_iterations_figure(found: Iterations, path: str | Path) -> None:
    """Three panels: saliency against T, in parts of the method's at the first T; accuracy against T; accuracy against seconds."""
    figure = new_figure(13, 4.2)
    figure.suptitle(setting_title(found.setting))
    saliency, accuracy, time = figure.subplots(1, 3)
    for colour, marker, name in styles([point.method for point in found.points]):
        groups = grouped([point for point in found.points if point.method == name], lambda point: point.steps)
        first = {point.seed: point.saliency for point in next(iter(groups.values()))}
        relative = {steps: [p.saliency / first[p.seed] for p in points if first[p.seed]] for steps, points in groups.items()}
        band(saliency, {steps: values for steps, values in relative.items() if values}, colour, marker, name)
        percents = {steps: [100 * point.test_accuracy for point in points] for steps, points in groups.items()}
        band(accuracy, percents, colour, marker, name)
        cells = [(mean_and_spread([p.seconds for p in points])[0], points) for points in groups.values()]
        _points(time, cells, colour, marker, name)
    first_steps = found.points[0].steps
    saliency.set_ylabel(f"pruning saliency / that of T = {first_steps}")
    saliency.set_yscale("log")
    for axes in (saliency, accuracy):
        axes.set_xlabel("number of steps T")
        axes.set_ylim(auto=True)
    accuracy.set_ylabel("test accuracy, %")
    time.set_ylabel("test accuracy, %")
    time.set_xlabel("seconds to prune (beside the points: T)")
    for axes in (saliency, accuracy, time):
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    saliency.legend(**_BAND)
    save(figure, path)


def _points(axes: Axes, cells: Sequence[tuple[float, Sequence[IterationsPoint]]], colour: str, marker: str, name: str) -> None:
    means = [100 * mean_and_spread([point.test_accuracy for point in points])[0] for _, points in cells]
    axes.plot([seconds for seconds, _ in cells], means, color=colour, marker=marker, label=name)
    for (seconds, points), mean in zip(cells, means, strict=True):
        axes.annotate(str(points[0].steps), (seconds, mean), xytext=(4, -11), textcoords="offset points", fontsize=8)


def save_saliency_figure(found: Saliencies, path: str | Path) -> None:
    """Left: both saliencies against the weights left, sparsification dashed. Right: one against the other, a point a step."""
    figure = new_figure(12, 4.8)
    figure.suptitle(setting_title(found.setting))
    way, relation = figure.subplots(1, 2)
    for colour, marker, name in styles([point.method for point in found.points]):
        points = [point for point in found.points if point.method == name]
        groups = grouped(points, lambda point: point.density)
        by_density = {100 * density: group for density, group in groups.items()}
        pruning = {density: [point.saliency.pruning for point in group] for density, group in by_density.items()}
        sparsification = {density: [p.saliency.sparsification for p in group] for density, group in by_density.items()}
        band(way, pruning, colour, "", f"{name}, pruning")
        band(way, sparsification, colour, "", f"{name}, sparsification", linestyle="--")
        relation.scatter(
            [point.saliency.sparsification for point in points],
            [point.saliency.pruning for point in points],
            color=colour,
            marker=marker,
            s=14,
            alpha=0.6,
            label=name,
        )
    way.set_xscale("log")
    way.invert_xaxis()
    way.set_yscale("log")
    way.set_xlabel("weights left, %")
    way.set_ylabel("sum of |w dL/dw|")
    relation.axline((1.0, 1.0), slope=1.0, color="0.6", linewidth=0.9)
    relation.set_xscale("log")
    relation.set_yscale("log")
    relation.set_xlabel("sparsification saliency")
    relation.set_ylabel("pruning saliency")
    for axes in (way, relation):
        axes.grid(alpha=0.3)
    way.legend(**_BAND)
    relation.legend(fontsize=8, title="a point: a step of a seed; line: equal", title_fontsize=8)
    save(figure, path)


def save_recovery_figure(found: Recovery, path: str | Path) -> None:
    """Weights pruned and recovered at every step. Left: their numbers; right: recovered ones in parts of the pruned ones."""
    figure = new_figure(12, 4.5)
    figure.suptitle(setting_title(found.setting))
    numbers, parts = figure.subplots(1, 2)
    for colour, marker, name in styles([step.method for step in found.steps]):
        groups = grouped([step for step in found.steps if step.method == name], lambda step: step.number)
        band(numbers, {n: [s.pruned for s in steps] for n, steps in groups.items()}, colour, marker, f"{name}, pruned")
        recovered = {n: [s.recovered for s in steps] for n, steps in groups.items()}
        if any(map(any, recovered.values())):
            band(numbers, recovered, colour, marker, f"{name}, recovered", linestyle="--")
        shares = {n: [100 * s.recovered / s.pruned for s in steps if s.pruned] for n, steps in groups.items()}
        band(parts, {n: values for n, values in shares.items() if values}, colour, marker, name)
    numbers.set_yscale("symlog", linthresh=1)
    numbers.set_ylim(bottom=0)
    numbers.set_ylabel("weights")
    parts.set_ylabel("recovered / pruned, %")
    parts.set_ylim(bottom=0)
    for axes in (numbers, parts):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(**_BAND)
    save(figure, path)


def save_layers_figure(found: Layers, path: str | Path) -> None:
    """What the methods leave in each layer, of the first seed."""
    first = dataclasses.replace(found.setting, seeds=found.setting.seeds[:1])
    layer_figure({name: seeds[0] for name, seeds in found.counts.items()}, path, setting_title(first))
