"""Masks -> table and picture: what each layer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tost.masks import LayerCount, Masks
from tost.masks.comparison import MaskComparison, Overlap
from tost.report.figures import COLOURS, new_figure, save
from tost.report.sheet import Cell, Number, Sheet, Value

__all__ = ["comparison_sheets", "layer_figure", "layer_sheet"]


def layer_sheet(masks: Masks, effective: Masks | None = None, title: str = "Weights kept in each layer") -> Sheet:
    """Shape, weights and weights kept of each layer and of all; beside them those on a path, where `effective` says which."""
    reached = {layer.name: layer.kept for layer in effective.per_layer()} if effective is not None else {}
    counts = [(n, "x".join(map(str, shape)), kept, total, reached.get(n, 0)) for n, shape, kept, total in masks.per_layer()]
    counts.append(("all", "", masks.kept, masks.total, sum(reached.values())))
    rows: list[tuple[Cell, ...]] = [
        (name, shape, Number(kept), Number(total), _percent(kept / total), Number(on_path), _percent(on_path / total))
        for name, shape, kept, total, on_path in counts
    ]
    header = ("layer", "shape", "kept", "weights", "kept %", "effective", "effective %")
    if effective is None:
        return Sheet(title, header[:5], tuple(row[:5] for row in rows))
    note = (
        f"Effective density {percent(effective.density)}%, of {percent(masks.density)}%: weights on a path of kept weights from "
        "an input to an output."
    )
    return Sheet(title, header, tuple(rows), note)


def percent(fraction: float) -> str:
    """Two decimals; below 1% three digits that say something."""
    return str(_percent(fraction))


def _percent(fraction: float) -> Number:
    return Number(100 * fraction, ".2f" if fraction >= 0.00995 or not fraction else ".3g")


def layer_figure(masks: Mapping[str, Sequence[LayerCount]], path: str | Path, title: str = "") -> None:
    """Write a PNG (or what `path`'s suffix says): density and weights kept of each layer, for several masks of one network.

    On logarithmic scales, as FORCE's Fig. 8 and 13 (https://arxiv.org/abs/2006.09081): a layer without any weight has a hollow
    mark at the bottom. The grey bars are the layers' dense weights.

    Args:
        masks: label -> the layers of its masks. Those of the first come first, further ones of the others behind them.

    Raises:
        ValueError: there are no masks.
        ModuleNotFoundError: without matplotlib.
    """
    if not masks:
        raise ValueError("masks: expected at least one, got none")
    totals = {layer.name: layer.total for layers in masks.values() for layer in layers}
    places = {name: i for i, name in enumerate(totals)}
    figure = new_figure(max(7.0, 0.22 * len(places) + 2), 7.5)
    above, below = figure.subplots(2, 1, sharex=True)
    below.bar(list(places.values()), list(totals.values()), color="#DDDDDD", label="dense")
    least = min((layer.density for layers in masks.values() for layer in layers if layer.kept), default=1.0) / 2
    for number, (label, layers) in enumerate(masks.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": "os^Dvx"[number // len(COLOURS) % 6], "linewidth": 1.2}
        at = [places[layer.name] for layer in layers]
        for axes, values, floor in (
            (above, [layer.density for layer in layers], least),
            (below, [float(layer.kept) for layer in layers], 0.5),
        ):
            kept = sum(layer.kept for layer in layers) / sum(layer.total for layer in layers)
            label_here = f"{label} ({percent(kept)}%)" if axes is above else None
            axes.plot(at, [value or floor for value in values], markersize=4, label=label_here, **style)
            empty = [place for place, value in zip(at, values, strict=True) if not value]
            axes.plot(empty, [floor] * len(empty), "o", markersize=8, fillstyle="none", color=style["color"])
    for axes, name in ((above, "density"), (below, "weights kept (grey: all)")):
        axes.set_yscale("log")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    if title:
        above.set_title(title)
    above.legend(fontsize=8)
    below.set_xticks(list(places.values()), list(places), rotation=90, fontsize=7)
    save(figure, path)


def comparison_sheets(comparisons: Mapping[tuple[str, str], MaskComparison]) -> list[Sheet]:
    """How far masks overlap: a row for each pair, and a table of the layers for each.

    Args:
        comparisons: (label of a, label of b) -> their comparison.
    """
    note = (
        "Jaccard: kept in both, of those kept in either. By chance: what random masks with as many weights in each layer "
        "share on average."
    )
    rows: list[tuple[Cell, ...]] = [(f"{a} | {b}", *_cells(comparison.all)) for (a, b), comparison in comparisons.items()]
    sheets = [Sheet("Overlap in all", ("a | b", *_HEADER), tuple(rows), note)]
    for (a, b), comparison in comparisons.items():
        layers: list[tuple[Cell, ...]] = [(layer.name, *_cells(layer)) for layer in comparison.layers]
        title, keys = f"a: {a}, b: {b}", (("a", a), ("b", b))
        sheets.append(Sheet(title, ("layer", *_HEADER), tuple(layers), _missing(comparison), name="layers", keys=keys))
    return sheets


_HEADER = ("weights", "kept a", "kept b", "kept in both", "by chance", "Jaccard", "Jaccard by chance", "agreement %")


def _cells(overlap: Overlap) -> Sequence[Value]:
    return (
        Number(overlap.total),
        Number(overlap.kept_a),
        Number(overlap.kept_b),
        Number(overlap.kept_both),
        Number(overlap.expected_both, ",.1f"),
        Number(overlap.jaccard, ".3f"),
        Number(overlap.expected_jaccard, ".3f"),
        _percent(overlap.agreement),
    )


def _missing(comparison: MaskComparison) -> str:
    parts = [
        f"Only in {which}: {', '.join(names)}." for which, names in (("a", comparison.only_a), ("b", comparison.only_b)) if names
    ]
    return " ".join(parts)
