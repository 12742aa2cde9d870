"""The curvature of networks of runs -> table and picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tost.analysis.curvature import Curvature
from tost.paired import mean_and_spread
from tost.report.figures import new_figure, save
from tost.report.lines import band, epoch_axis, styles
from tost.report.networks import epoch_name, seeds_alike
from tost.report.sheet import Cell, Sheet, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curvature_sheet", "save_curvature_figure"]

_DASHES = {"finalized": "-", "training": "--"}
_MOVING = {"weights": "the active weights", "all": "the active weights, biases and BatchNorm's parameters"}
_MOST_PANELS = 4  # epochs of which the loss along the eigenvector is drawn: the first ones and the last


def curvature_sheet(found: Curvature) -> Sheet:
    """A row for each variant, epoch and form."""
    measure = found.measure
    line = measure.line
    rows: list[tuple[Cell, ...]] = []
    for (variant, _, _), group in seeds_alike(found.networks).items():
        losses: list[Cell] = []
        if line is not None:
            middle = line.points // 2
            # what is not finite has no mean; it is left out, here as in the picture
            centres = [one.losses[middle] for one in group if math.isfinite(one.losses[middle])]
            rises = [one.losses[-1] - one.losses[middle] for one in group if math.isfinite(one.losses[-1])]
            losses = [Spread(centres, ".3f"), Spread(rises, ".3g", ".2g")]
        rows.append(
            (
                variant,
                epoch_name(group[0].origin),
                *(Spread([one.mean(place) for one in group], ".4g", ".2g") for place in range(measure.count)),
                Spread([one.spread() for one in group] if measure.batches > 1 else [], ".2g"),
                *losses,
            )
        )
    names = ["eigenvalue", *(f"eigenvalue {place + 1}" for place in range(1, measure.count))]
    header = ["variant", "network", *names, "its deviation between batches"]
    along = ""
    if line is not None:
        header += ["test loss", f"rise at {line.reach:g}"]
        along = (
            f" Test loss: of {found.images} images; rise: along the first batch's top eigenvector, whose length is 1, to the "
            "steeper side."
        )
    kind = "Largest eigenvalues" if measure.which == "LA" else "Eigenvalues largest in size"
    return Sheet(
        f"Curvature of the loss: {found.title}",
        tuple(header),
        tuple(rows),
        f"{kind} of the Hessian over {_MOVING[measure.parameters]}: cross entropy without label smoothing, eval mode, mean over "
        f"{_batches(found)}, then mean ± standard deviation over the seeds.{along}",
        texts=("network",),
    )


def save_curvature_figure(found: Curvature, path: str | Path) -> None:
    """Left: the eigenvalue after each epoch. Right, where it was measured: the test loss along the top eigenvector.

    Dashed: with living ghosts. Bands: from the least to the largest of the seeds; bars: standard deviation between the batches.
    """
    epochs = sorted({one.origin.epoch for one in found.networks})
    drawn = [] if found.measure.line is None else [*epochs[: _MOST_PANELS - 1], *epochs[_MOST_PANELS - 1 :][-1:]]
    figure = new_figure(6.4 + 4.2 * len(drawn), 5.0)
    figure.suptitle(f"Curvature of the loss: {found.title}")
    course, *lines = figure.subplots(1, 1 + len(drawn), squeeze=False, width_ratios=[1.3, *[1.0] * len(drawn)])[0]
    _course(course, found)
    for place, (axes, epoch) in enumerate(zip(lines, drawn, strict=True)):
        _line(axes, found, epoch)
        if place == 0:
            axes.set_ylabel(f"cross entropy of {found.images} test images")
    figure.legend(*course.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save(figure, path)


def _course(axes: Axes, found: Curvature) -> None:
    groups = seeds_alike(found.networks)
    least = math.inf
    for colour, marker, variant in styles([variant for variant, _, _ in groups]):
        for form, dashes in _DASHES.items():
            here = {epoch: group for (of, epoch, in_form), group in sorted(groups.items()) if (of, in_form) == (variant, form)}
            if not here:
                continue
            values: dict[float, list[float]] = {epoch: [one.mean() for one in group] for epoch, group in here.items()}
            band(axes, values, colour, marker, variant + (", ghosts alive" if form == "training" else ""), dashes)
            means = [mean_and_spread(of_seeds)[0] for of_seeds in values.values()]
            spreads = [mean_and_spread([one.spread() for one in group])[0] for group in here.values()]
            axes.errorbar(list(here), means, yerr=spreads, color=colour, linestyle="none", capsize=3, linewidth=0.9)
            least = min(least, *(mean - spread for mean, spread in zip(means, spreads, strict=True)))
    if least > 0:
        axes.set_yscale("log")
    size = "largest" if found.measure.which == "LA" else "eigenvalue largest in size:"
    seeds = len({one.origin.seed for one in found.networks})
    said = [f"{size} eigenvalue over {_MOVING[found.measure.parameters]},", f"mean and deviation of {_batches(found)}"]
    said += [f"bands: from the least to the largest of {seeds} seeds"] if seeds > 1 else []
    axes.set_title("\n".join(said), fontsize=9)
    axes.set_ylabel("eigenvalue of the Hessian")
    epoch_axis(axes)
    axes.grid(alpha=0.3)


def _line(axes: Axes, found: Curvature, epoch: int) -> None:
    line = found.measure.line
    assert line is not None
    groups = seeds_alike(found.networks)
    for colour, _, variant in styles([variant for variant, _, _ in groups]):
        for form, dashes in _DASHES.items():
            group = groups.get((variant, epoch, form), [])
            values = {
                distance: losses
                for i, distance in enumerate(line.distances)
                if (losses := [one.losses[i] for one in group if math.isfinite(one.losses[i])])
            }
            if values:
                band(axes, values, colour, "", variant, dashes)
    axes.set_title("initialisation" if epoch == 0 else f"epoch {epoch}", fontsize=9)
    axes.set_xlabel("distance along the top eigenvector,\nto the right the steeper side", fontsize=9)
    axes.grid(alpha=0.3)


def _batches(found: Curvature) -> str:
    measure = found.measure
    return f"{measure.batches} batch{'es' if measure.batches > 1 else ''} of {measure.batch_size} training images"
