"""Solution paths and the trainings that walked them -> tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TypeVar

from tost.analysis.path_density import PathDensities, RunDensities
from tost.analysis.solution_path import FilterPath, LayerPath
from tost.analysis.training_curves import TrainingCurve, TrainingCurves
from tost.report.sheet import Cell, Number, Part, Sheet, Spread

__all__ = ["by_variant", "curves_sheet", "density_sheets", "path_sheet", "variant_name"]

OfRun = TypeVar("OfRun", RunDensities, TrainingCurve)


def by_variant(runs: Sequence[OfRun]) -> dict[str, list[OfRun]]:
    """Setting -> its runs, one a seed."""
    groups: dict[str, list[OfRun]] = {}
    for run in runs:
        groups.setdefault(run.variant, []).append(run)
    return groups


def variant_name(group: Sequence[OfRun]) -> str:
    """E.g. `kappa 2, 5 seeds`; of a lone setting only which seeds."""
    seeds = f"{len(group)} seeds" if len(group) > 1 else f"seed {group[0].seed}"
    return f"{group[0].variant}, {seeds}" if group[0].variant else seeds


def path_sheet(found: FilterPath) -> Sheet:
    """A row for each layer: how many filters entered, when, and how large those inside and outside are at the end."""
    return Sheet(
        f"Solution path: {found.title}",
        (
            "layer",
            "filters in the support",
            "weights in the support %",
            "first enters",
            "last enters",
            "mean norm inside",
            "mean norm outside",
        ),
        tuple(_layer_row(found.epochs, layer) for layer in found.layers),
        f"After epoch {found.epochs[-1]}; norm: ||W_o||_2. A filter (or unit) is in the support where a weight of it is. First, "
        "last enters: of those that ever are, the first recorded epoch.",
    )


def _layer_row(epochs: Sequence[int], layer: LayerPath) -> tuple[Cell, ...]:
    entered = [epochs[entry] for entry in layer.entries if entry is not None]
    held = layer.inside[-1]
    means = []
    for side in "10":
        norms = [norm for norm, inside in zip(layer.norms[-1], held, strict=True) if inside == side]
        means.append(Number(statistics.fmean(norms) if norms else None, ".4g"))
    return (
        layer.name,
        Part(held.count("1"), len(held)),
        Number(100 * layer.densities[-1], ".2f"),
        Number(min(entered, default=None)),
        Number(max(entered, default=None)),
        *means,
    )


def curves_sheet(found: TrainingCurves) -> Sheet:
    """A row for each setting: where its training ended."""
    rows: list[tuple[Cell, ...]] = []
    for group in by_variant(found.runs).values():
        losses = ([run.train_loss[-1] for run in group], [run.test_loss[-1] for run in group])
        fractions = ([run.test_accuracy[-1] for run in group], [run.support_density[-1] for run in group])
        rows.append(
            (
                variant_name(group),
                Number(max(run.epochs[-1] for run in group)),
                *(Spread(_there(values), ".4f") for values in losses),
                *(Spread([100 * value for value in _there(values)]) for values in fractions),
            )
        )
    return Sheet(
        f"Training: {found.title}",
        ("setting", "epochs", "training loss", "test loss", "test accuracy %", "weights in the support %"),
        tuple(rows),
        "After the last epoch, of the weights in training (W, not its projection onto the support): mean ± standard deviation of "
        "the seeds.",
    )


def density_sheets(found: PathDensities) -> list[Sheet]:
    """A row for each setting: density along its path; and a table of the single layers, where some were asked for."""
    places = {"1/4 of the epochs": 0.25, "1/2": 0.5, "3/4": 0.75, "the last": 1.0}
    header = ("setting", *(f"% after {place}" for place in places))
    note = "Weights in the support of those in layers with a Gamma, at the recorded epoch nearest: mean ± standard deviation."
    rows: list[tuple[Cell, ...]] = []
    layers: list[tuple[Cell, ...]] = []
    for group in by_variant(found.runs).values():
        rows.append((variant_name(group), *(_at(share, [run.overall for run in group]) for share in places.values())))
        for name in found.layers:
            of_layer = [run.layers[name] for run in group if name in run.layers]
            layers.append((variant_name(group), name, *(_at(share, of_layer) for share in places.values())))
    sheets = [Sheet(f"Density along the path: {found.title}", header, tuple(rows), note)]
    if layers:
        title = f"Density along the path, layer by layer: {found.title}"
        header = (header[0], "layer", *header[1:])
        sheets.append(Sheet(title, header, tuple(layers), note, texts=("layer",), name="layers"))
    return sheets


def _at(share: float, runs: Sequence[Sequence[float]]) -> Spread:
    return Spread([100 * densities[round(share * (len(densities) - 1))] for densities in runs])


def _there(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
