"""Filters along a training -> a table, and pictures of what they answer to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tost.analysis.filters import Filters, FilterView, Picture
from tost.report.figures import new_figure, save
from tost.report.path_figures import INSIDE, OUTSIDE
from tost.report.sheet import Number, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["filters_sheet", "save_exciting_figure", "save_guided_figure"]

_SIDE = 1.0  # inches of a picture
_SCALE = "grey: 0, brighter: above, each to its own scale"


def filters_sheet(found: Filters) -> Sheet:
    """A row for each filter and epoch."""
    rows = tuple(
        (
            str(view.filter),
            Number(view.epoch),
            {True: "in", False: "outside", None: "no path"}[view.inside],
            Number(view.norm, ".4g"),
            Number(view.activation, ".4g"),
        )
        for view in found.views
    )
    return Sheet(
        f"Filters of {found.layer}: {found.title}",
        ("filter", "epoch", "support", "norm", "mean activation"),
        rows,
        f"Norm: ||W_o||_2. Mean activation: relu of the layer's output, at the input that {found.steps} steps of gradient ascent "
        "found, with a mean square of 1 a pixel; 0: nothing on the way excited the filter.",
        texts=("support",),
    )


def save_exciting_figure(found: Filters, path: str | Path) -> None:
    """The input that excites each filter most: a row an epoch, a column a filter, framed by where the filter is.

    Figs. 1 and 2 of https://arxiv.org/abs/2007.02010.
    """
    rows = [[_Tile(view.exciting, view, "" if view.activation else "none") for view in _of(found, e)] for e in found.epochs]
    title = f"Inputs that excite filters of {found.layer}: {found.title}\n{found.steps} steps of activation maximisation"
    _draw(found, path, title, rows, [f"epoch {epoch}" for epoch in found.epochs])


def save_guided_figure(found: Filters, path: str | Path) -> None:
    """What in test images excites each filter, by guided backpropagation: a row an image and epoch, framed as above."""
    rows, labels = [], []
    for i, image in enumerate(found.images):
        for epoch in found.epochs:
            tiles = [_Tile(view.guided[i], view, "" if view.guided[i].scale else "none") for view in _of(found, epoch)]
            rows.append([_Tile(found.inputs[i], None, ""), *tiles])
            labels.append(f"epoch {epoch}" + (f"\nimage {image}" if len(found.images) > 1 else ""))
    which = f"test image {found.images[0]}" if len(found.images) == 1 else f"{len(found.images)} test images"
    title = f"What excites filters of {found.layer}: {found.title}\nguided gradients of the mean activation, {which}"
    _draw(found, path, title, rows, labels)


class _Tile(NamedTuple):
    """A picture, the filter that it is of (None: the image itself), and what is written on it."""

    picture: Picture
    view: FilterView | None
    said: str


def _of(found: Filters, epoch: int) -> list[FilterView]:
    return [view for view in found.views if view.epoch == epoch]


def _draw(found: Filters, path: str | Path, title: str, rows: Sequence[Sequence[_Tile]], labels: Sequence[str]) -> None:
    figure = new_figure(max(_SIDE * len(rows[0]) + 1.0, 6.0), _SIDE * len(rows) + 1.5)
    figure.suptitle(f"{title}\n{_SCALE}", fontsize=10)
    places: Any = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for i, (tiles, label) in enumerate(zip(rows, labels, strict=True)):
        for axes, tile in zip(places[i], tiles, strict=True):
            _show(axes, tile, found.shape)
            if i == 0:
                axes.set_title("image" if tile.view is None else f"filter {tile.view.filter}", fontsize=8)
        places[i, 0].set_ylabel(label, fontsize=8)
    _marks(figure, found)
    save(figure, path)


def _show(axes: Axes, tile: _Tile, shape: Sequence[int]) -> None:
    levels = tile.picture.levels(shape)
    if len(levels) == 3:
        axes.imshow(((levels + 1) / 2).permute(1, 2, 0).numpy())
    else:  # colours have no meaning for other numbers of channels
        axes.imshow(levels.mean(0).numpy(), cmap="gray", vmin=-1, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    if tile.said:
        axes.text(0.5, 0.5, tile.said, transform=axes.transAxes, ha="center", va="center", fontsize=8, color="0.2",
                  bbox={"color": "white", "pad": 1})  # fmt: skip
    inside = tile.view.inside if tile.view is not None else None
    for spine in axes.spines.values():
        spine.set_color("0.7" if inside is None else INSIDE if inside else OUTSIDE)
        spine.set_linewidth(0.8 if inside is None else 2.4)


def _marks(figure: Figure, found: Filters) -> None:
    from matplotlib.lines import Line2D

    if any(view.inside is not None for view in found.views):
        marks = [
            Line2D([], [], color=INSIDE, linewidth=2.4, label="in the support"),
            Line2D([], [], color=OUTSIDE, linewidth=2.4, label="outside"),
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
