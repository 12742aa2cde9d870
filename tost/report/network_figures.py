"""Analyses of the networks of runs -> pictures: activations, gradient flow, PSwish."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tost.analysis.activations import Activations
from tost.analysis.gradient_flow import GradientFlow
from tost.analysis.pswish import Fade, PSwishCurves
from tost.paired import mean_and_spread
from tost.report.figures import COLOURS, MARKERS, new_figure, save
from tost.report.lines import band, epoch_axis, styles
from tost.report.networks import batches_of, epoch_name, seeds_alike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_activations_figure", "save_gradients_figure", "save_pswish_figure"]

_OF_FORM = {"finalized": "-", "training": "--"}


def save_activations_figure(found: Activations, path: str | Path) -> None:
    """Left: percent of the activations near zero behind each layer. Right: their mean over the layers.

    A line for each variant, epoch and form; dashed while ghosts live. Bands and bars: from the least to the largest of the seeds.
    """
    groups = seeds_alike(found.networks)
    names = list(dict.fromkeys(layer.name for one in found.networks for layer in one.layers))
    epochs = sorted({epoch for _, epoch, _ in groups})
    figure = new_figure(max(9.0, 0.28 * len(names) + 6.5), 5.2 if len(names) > 8 else 4.6)
    figure.suptitle(f"Activations of at most {found.threshold:g} in size: {found.title}, {found.images:,} test images")
    layers, means = figure.subplots(1, 2, width_ratios=[max(2.0, 0.1 * len(names)), 1])
    colours = {variant: colour for colour, _, variant in styles([variant for variant, _, _ in groups])}
    labels = []
    for (variant, epoch, form), group in groups.items():
        marker = MARKERS[epochs.index(epoch) % len(MARKERS)]
        labels.append(f"{variant}, {epoch_name(group[0].origin)} ({group[0].functions})")
        shares: dict[float, list[float]] = {}
        for one in group:
            for layer in one.layers:
                shares.setdefault(names.index(layer.name), []).append(100 * layer.fraction)
        band(layers, dict(sorted(shares.items())), colours[variant], marker, labels[-1], _OF_FORM[form])
        values = [100 * one.mean for one in group]
        mean, at = mean_and_spread(values)[0], len(labels) - 1
        ends = [[mean - min(values)], [max(values) - mean]] if len(values) > 1 else None
        fill = (
            {"color": "white", "edgecolor": colours[variant], "hatch": "///"}
            if form == "training"
            else {"color": colours[variant]}
        )
        means.barh([at], [mean], xerr=ends, capsize=3, height=0.7, **fill)
        means.annotate(f"{mean:.1f}", (max(values), at), xytext=(5, -3), textcoords="offset points", fontsize=8)
    layers.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 20, fontsize=7)
    layers.set_xlabel("layer, in the order of the forward pass")
    layers.set_ylabel("activations near zero, %")
    layers.set_ylim(0, 102)
    layers.grid(alpha=0.3)
    means.set_yticks(range(len(labels)), labels, fontsize=7)
    means.yaxis.tick_right()
    means.invert_yaxis()
    means.set_xlabel("mean of the layers, %")
    means.set_xlim(0, 116)  # room for the numbers
    means.set_xticks(range(0, 101, 20))
    means.grid(alpha=0.3, axis="x")
    means.set_axisbelow(True)
    figure.legend(*layers.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    save(figure, path)


def save_gradients_figure(found: GradientFlow, path: str | Path) -> None:
    """Left: norm of the gradient after each epoch. Right: of each layer at the first of them, usually the initialisation.

    Dashed: with living ghosts. Bands: from the least to the largest of the seeds.
    """
    groups = seeds_alike(found.networks)
    names = list(dict.fromkeys(name for one in found.networks for name in one.norms.layers))
    first = min(epoch for _, epoch, _ in groups)
    figure = new_figure(max(11.0, 0.22 * len(names) + 7.0), 5.2)
    figure.suptitle(f"Gradient of the loss over the active weights: {found.title}")
    course, layers = figure.subplots(1, 2, width_ratios=[1, max(1.2, 0.05 * len(names))])
    for colour, marker, variant in styles([variant for variant, _, _ in groups]):
        for form, dashes in _OF_FORM.items():
            here = {epoch: group for (of, epoch, in_form), group in groups.items() if (of, in_form) == (variant, form)}
            later = [epoch for of, epoch, in_form in groups if of == variant and epoch > max(here, default=math.inf)]
            if form == "training" and later:  # where the ghosts are gone both forms are one
                here[min(later)] = groups[variant, min(later), "finalized"]
            label = variant + (", ghosts alive" if form == "training" else "")
            totals: dict[float, list[float]] = {
                epoch: _finite([one.norms.total for one in here[epoch]]) for epoch in sorted(here)
            }
            if any(totals.values()):
                band(course, {epoch: norms for epoch, norms in totals.items() if norms}, colour, marker, label, dashes)
            if first in here:
                norms = {
                    float(i): _finite([one.norms.layers[name] for one in here[first] if one.norms.layers.get(name)])
                    for i, name in enumerate(names)
                }
                band(layers, {i: values for i, values in norms.items() if values}, colour, marker, label, dashes)
    course.set_ylabel("norm of the gradient")
    epoch_axis(course)
    course.legend(fontsize=8)
    course.set_title(f"all layers, mean over {batches_of(found)}", fontsize=10)
    layers.set_xticks(range(len(names)), [name.removesuffix(".weight") for name in names], rotation=90, fontsize=7)
    layers.set_ylabel("norm of the layer's part")
    layers.set_title("each layer at initialisation" if first == 0 else f"each layer after epoch {first}", fontsize=10)
    for axes in (course, layers):
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    save(figure, path)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def save_pswish_figure(found: PSwishCurves, path: str | Path) -> None:
    """The function, its slope, and what a training does to the ghosts."""
    import matplotlib

    figure = new_figure(13.5, 4.2)
    function, slope, course = figure.subplots(1, 3)
    shades = matplotlib.colormaps["viridis"]
    smooth = [curve for curve in found.curves if not math.isinf(curve.beta)]
    for curve in found.curves:
        exact = math.isinf(curve.beta)
        colour = "black" if exact else shades(0.9 * smooth.index(curve) / max(1, len(smooth) - 1))
        label = "ReLU (beta = inf)" if exact else f"beta = {curve.beta:g}"
        style = {"color": colour, "label": label, "linestyle": "--" if exact else "-", "linewidth": 1.4}
        function.plot(found.inputs, curve.values, **style)
        slope.plot(found.inputs, curve.slopes, **style)
    function.set_title("PSwish(x) = x sigmoid(beta x)", fontsize=10)
    function.set_xlim(-4, 3)
    function.set_ylim(-0.5, 3)
    function.set_ylabel("PSwish(x)")
    slope.set_title("its derivative", fontsize=10)
    slope.set_xlim(-4, 4)
    slope.set_ylabel("dPSwish / dx")
    for axes in (function, slope):
        axes.set_xlabel("x")
        axes.grid(alpha=0.3)
    function.legend(fontsize=8)
    _fade(course, found.fade)
    save(figure, path)


def _fade(axes: Axes, fade: Fade) -> None:
    """alpha on the left axis, beta on the right one."""
    axes.set_xlabel(f"step, of {fade.total:,}")
    axes.set_xlim(0, fade.total)
    axes.grid(alpha=0.3)
    for step in fade.window:
        axes.axvline(step, color="0.6", linewidth=0.9, linestyle=":")
    if not fade.alpha and not fade.beta:
        axes.set_title("the recipe has no ghosts that fade", fontsize=10)
        axes.set_yticks([])
        return
    start, end = fade.window
    axes.set_title(
        "permanent ghosts" if fade.recipe.permanent else f"the ghosts fade from step {start:,} to {end:,}", fontsize=10
    )
    lines: list[tuple[Axes, Mapping[int, float], str, str, str]] = []
    if fade.alpha:
        alphas = dict(zip(fade.steps, fade.alpha, strict=True))
        lines.append((axes, alphas, COLOURS[0], "-", "alpha, gate of the ghost skips"))
    if fade.beta:
        betas = {step: beta for step, beta in zip(fade.steps, fade.beta, strict=True) if math.isfinite(beta)}
        right = axes.twinx() if lines else axes
        lines.append((right, betas, COLOURS[1], "--", "beta, sharpness of the ghost swish"))
        if math.inf in fade.beta:
            right.text(
                0.5 * (end + fade.total), 0.5, "exact ReLU", ha="center", transform=right.get_xaxis_transform(), fontsize=8
            )
    for place, values, colour, dashes, name in lines:
        place.plot(list(values), list(values.values()), color=colour, linestyle=dashes)
        place.set_ylabel(name, color=colour)
        place.tick_params(axis="y", colors=colour)
        place.set_ylim(0, 1.05 * max(values.values()))
