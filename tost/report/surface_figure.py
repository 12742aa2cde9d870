"""Loss surfaces -> a picture: contours and mountains, all at one scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tost.analysis.surface import Surface, Surfaces
from tost.report.figures import new_figure, save
from tost.report.networks import epoch_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_surface_figure"]

CEILING = 8.0  # where the picture ends; the record does not
_LEVELS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
_COLOURS = "viridis"


def save_surface_figure(found: Surfaces, path: str | Path) -> None:
    """A row for each variant and for each epoch two panels: contours and the surface, of the first seed, clipped at 8.

    Dashed: the loss of guessing. The cross is the network itself.
    """
    seed = found.surfaces[0].origin.seed
    drawn = [surface for surface in found.surfaces if surface.origin.seed == seed]
    variants = list(dict.fromkeys(surface.origin.variant for surface in drawn))
    epochs = sorted({surface.origin.epoch for surface in drawn})
    figure = new_figure(6.4 * len(epochs) + 1.2, 3.6 * len(variants) + 0.8)
    figure.suptitle(
        f"Loss around the network: {found.title}, seed {seed}\n"
        f"{found.images} {found.part} images; clipped at {CEILING:g}; dashed: chance, ln {found.classes}",
        fontsize=11,
    )
    halves: Any = figure.subfigures(1, 2, width_ratios=[6.4 * len(epochs), 0.9])
    left, right = halves
    parts = left.subfigures(len(variants), len(epochs), squeeze=False)
    for surface in drawn:
        part = parts[variants.index(surface.origin.variant), epochs.index(surface.origin.epoch)]
        part.suptitle(f"{surface.origin.variant}, {epoch_name(surface.origin)}: loss {surface.centre:.3g}", fontsize=10)
        _contours(part.add_subplot(1, 2, 1), found, surface)
        _mountain(part.add_subplot(1, 2, 2, projection="3d"), found, surface)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, CEILING), _COLOURS)
    right.colorbar(scale, cax=right.add_axes((0.1, 0.15, 0.2, 0.65)), label="mean cross entropy")
    save(figure, path)


def _clipped(surface: Surface) -> list[list[float]]:
    return [[min(loss, CEILING) for loss in row] for row in surface.losses]


def _contours(axes: Axes, found: Surfaces, surface: Surface) -> None:
    losses = _clipped(surface)
    axes.contourf(found.steps, found.steps, losses, levels=[CEILING * i / 64 for i in range(65)], cmap=_COLOURS)
    lowest, highest = min(map(min, losses)), max(map(max, losses))
    levels = [level for level in _LEVELS if lowest < level < highest]
    if levels:
        lines = axes.contour(found.steps, found.steps, losses, levels=levels, colors="white", linewidths=0.6, alpha=0.8)
        axes.clabel(lines, fontsize=6, fmt="%g")
    chance = math.log(found.classes)
    if lowest < chance < highest:
        axes.contour(found.steps, found.steps, losses, levels=[chance], colors="black", linestyles="--", linewidths=0.9)
    axes.plot([0], [0], "+", color="red", markersize=7)
    axes.set_box_aspect(1)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    axes.tick_params(labelsize=7)
    axes.set_xlabel("first direction, filter norms", fontsize=8)
    axes.set_ylabel("second direction, filter norms", fontsize=8)


def _mountain(axes: Any, found: Surfaces, surface: Surface) -> None:
    import numpy as np

    x, y = np.meshgrid(found.steps, found.steps)
    heights = np.array(_clipped(surface))
    axes.plot_surface(x, y, heights, cmap=_COLOURS, vmin=0, vmax=CEILING, rcount=51, ccount=51, linewidth=0.1, edgecolor="0.3")
    axes.set_zlim(0, CEILING)
    axes.set_box_aspect((1, 1, 0.8), zoom=0.95)
    axes.view_init(elev=38, azim=-55)
    axes.set_xticks([-1, 0, 1])
    axes.set_yticks([-1, 0, 1])
    axes.set_zticks([0, 2, 4, 6, 8])
    axes.tick_params(labelsize=7, pad=-2)
