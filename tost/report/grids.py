"""A comparison -> tables: one for each cell, and one that counts cells."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from tost.grid import Cell, Grid
from tost.model_address import short_name
from tost.paired import mean_and_spread
from tost.report.sheet import Cell as TableCell
from tost.report.sheet import Change, Difference, Number, Part, Sheet, Spread
from tost.report.step_times import NONE_COMPILED, none_compiled, step_time_sheet
from tost.runs import Result

__all__ = ["cell_labels", "densities_of", "grid_sheets", "grid_title", "several_densities", "steps_of"]

_APART = 1.02  # densities with a smaller ratio are one


def grid_sheets(grid: Grid) -> list[Sheet]:
    """A table for each cell, one that counts and pools them where there are several, and the step times where there are some."""
    sheets = [_cell_sheet(grid, cell, _note(grid) if cell == grid.cells[-1] else "") for cell in grid.cells]  # said once
    if len(grid.cells) > 1 and any(True for _ in _pairs(grid)):
        sheets.append(_summary_sheet(grid))
    if grid.step_times:
        sheets.append(step_time_sheet(grid.step_times, grid.environment.get("threads")))
    return sheets


def grid_title(grid: Grid, cell: Cell | None = None) -> str:
    """What the runs of a cell, or of all cells, are: network, data, mask, steps, seeds."""
    if cell is None and len(grid.cells) == 1:
        cell = grid.cells[0]
    runs = [run for each in (grid.cells if cell is None else [cell]) for name in grid.variants for run in grid.runs(each, name)]
    what = [_title(grid, cell)] if cell is not None else _shared(grid)
    lengths = sorted({steps_of(run) for run in runs})
    if lengths:
        what.append(f"{' or '.join(map(str, lengths))} steps")
    count = len(grid.seeds)
    return ", ".join([*what, f"{count} seed{'s' if count > 1 else ''}"])


def densities_of(grid: Grid, cell: Cell) -> list[float]:
    """Mean fraction of the weights that each variant keeps, of those that keep not all."""
    runs = [found for name in grid.variants if (found := grid.runs(cell, name))]
    means = [statistics.fmean(run.accounting.density for run in of_variant) for of_variant in runs]
    return [mean for mean in means if 0 < mean < 1]


def several_densities(grid: Grid, cell: Cell) -> bool:
    """Whether the variants of a cell, dense ones aside, differ in how many weights they keep."""
    kept = densities_of(grid, cell)
    return bool(kept) and max(kept) > _APART * min(kept)


def _title(grid: Grid, cell: Cell) -> str:
    """That of the cell; where its variants are not all of its density, with those that they have."""
    if not several_densities(grid, cell):
        return cell.title
    sparsest, densest = (100 * (1 - limit(densities_of(grid, cell))) for limit in (min, max))
    return f"{cell.title.rpartition(', ')[0]}, {densest:.4g} to {sparsest:.4g}% sparse"


def cell_labels(grid: Grid) -> dict[Cell, str]:
    """Of each cell what others do not have; its whole title where it is alone."""
    if len(grid.cells) == 1:
        return {grid.cells[0]: grid.cells[0].title}
    parts = {
        cell: (short_name(cell.model), cell.dataset, cell.method, f"{100 * (1 - cell.density):g}% sparse") for cell in grid.cells
    }
    differs = [len(set(values)) > 1 for values in zip(*parts.values(), strict=True)]
    return {cell: ", ".join(part for part, said in zip(of, differs, strict=True) if said and part) for cell, of in parts.items()}


def steps_of(run: Result) -> int:
    """How many steps it was trained for."""
    step: int = run.history[-1]["step"]
    return step


def _shared(grid: Grid) -> list[str]:
    """What all cells have in common, said once."""
    models, datasets, methods, densities = (
        list(dict.fromkeys(values))
        for values in zip(*((short_name(c.model), c.dataset, c.method, c.density) for c in grid.cells), strict=True)
    )
    network = models[0] if len(models) == 1 else f"{len(models)} networks"
    data = datasets[0] if len(datasets) == 1 else f"{len(datasets)} data sets"
    masks = [f"{methods[0]} mask"] if len(methods) == 1 and methods[0] else [f"{len(methods)} masks"] * (len(methods) > 1)
    sparsity = [f"{100 * (1 - densities[0]):g}% sparse"] if len(densities) == 1 else [f"{len(densities)} sparsities"]
    return [f"{network} on {data}", *masks, *sparsity]


def _note(grid: Grid) -> str:
    note = "Accuracy after the last step, finalized network: mean ± standard deviation."
    if any(True for _ in _pairs(grid)):
        note += (
            f" Difference: points, mean over pairs of the same {_paired_by(grid)}, with its 95% t-interval, "
            "and how many of the pairs are above 0; won: the interval lies above 0, lost: it lies below."
        )
    if any(len({run.accounting.weights_kept for run in grid.runs(*place)}) > 1 for place in _places(grid)):
        note += " Weights kept: mean over the seeds."
    if _ghosts(grid):
        note += " Ghost weights: while training -> left in the result."
    if _diverged(grid):
        note += " Diverged: runs whose loss was no number any more; they have no accuracy, and their pairs no difference."
    return note


def _paired_by(grid: Grid) -> str:
    """What all runs of a cell and seed have in common; a dense one has no mask."""
    shared = {"mask": "masks_fingerprint", "initial weights": "weights_fingerprint", "batches": "batches_fingerprint"}
    for cell in grid.cells:
        for runs in zip(*grid.results[cell].values(), strict=True):
            for what, field in list(shared.items()):
                values = {getattr(run, field) for run in runs if isinstance(run, Result)} - {None}
                if len(values) > 1:
                    del shared[what]
    *first, last = ("seed", *shared)
    return f"{', '.join(first)} and {last}" if first else last


def _ghosts(grid: Grid) -> bool:
    return any(run.ghost_weights_at_start for place in _places(grid) for run in grid.runs(*place))


def _diverged(grid: Grid) -> bool:
    return any(grid.diverged(*place) for place in _places(grid))


def _places(grid: Grid) -> Iterator[tuple[Cell, str]]:
    """(cell, variant)"""
    return itertools.product(grid.cells, grid.variants)


def _cell_sheet(grid: Grid, cell: Cell, note: str) -> Sheet:
    diverged, ghosts = _diverged(grid), _ghosts(grid)
    baselines = list(dict.fromkeys(baseline for _, baseline in _pairs(grid)))
    rows = []
    for name in grid.variants:
        runs = grid.runs(cell, name)
        row: list[TableCell] = [name, Spread([100 * accuracy for accuracy in grid.accuracies(cell, name)])]
        for baseline in baselines:
            row.append(Difference(grid.against(cell, name, baseline) if name != baseline else None))
        if diverged:
            row.append(Number(grid.diverged(cell, name)))
        kept = [run.accounting.weights_kept for run in runs]
        row.append(Part(round(statistics.fmean(kept)), runs[0].accounting.weights_prunable) if runs else "")
        if ghosts:
            left = [run.accounting.ghost_weights for run in runs]
            row.append(Change(runs[0].ghost_weights_at_start, max(left)) if runs else "")
        row.append(Number(mean_and_spread([run.seconds for run in runs])[0] if runs else None, ".0f"))
        rows.append(tuple(row))
    header = [
        "variant",
        "test accuracy %",
        *(f"paired difference to {baseline}" for baseline in baselines),
        *(["diverged"] if diverged else []),
        "weights kept",
        *(["ghost weights"] if ghosts else []),
        "s/run",
    ]
    keys = (("model", short_name(cell.model)), ("data set", cell.dataset), ("mask", cell.method), ("density", cell.density))
    return Sheet(f"{grid_title(grid, cell)}{_kernels(grid, cell)}", tuple(header), tuple(rows), note, keys=keys)


def _pairs(grid: Grid) -> Iterator[tuple[str, str]]:
    """(variant, baseline)"""
    return ((name, baseline) for baseline in grid.baselines for name in grid.variants if name != baseline)


def _summary_sheet(grid: Grid) -> Sheet:
    """Cells won, lost and undecided, and the difference pooled over them: all, and those of each network and data set."""
    groups: dict[str, tuple[Cell, ...]] = {"all": grid.cells}
    subjects = dict.fromkeys((short_name(cell.model), cell.dataset) for cell in grid.cells)
    if len(subjects) > 1:
        for model, dataset in subjects:
            of_subject = tuple(c for c in grid.cells if (short_name(c.model), c.dataset) == (model, dataset))
            groups[f"{model} on {dataset}"] = of_subject
    rows: list[tuple[TableCell, ...]] = []
    for variant, baseline in _pairs(grid):
        for group, cells in groups.items():
            verdicts = [grid.against(cell, variant, baseline).verdict for cell in cells]
            counts = [Number(verdicts.count(verdict)) for verdict in ("won", "lost", "undecided")]
            diverged = sum(grid.diverged(cell, name) for cell in cells for name in (variant, baseline))
            pooled = Difference(grid.pooled(variant, baseline, cells))
            rows.append((variant, baseline, group, *counts, pooled, Number(diverged)))
    return Sheet(
        f"Cells won and lost: {grid_title(grid)}",
        ("variant", "against", "cells", "won", "lost", "undecided", "pooled difference", "diverged"),
        tuple(rows),
        "Cells: won where the 95% t-interval of the paired difference lies above 0, lost where it lies below, else undecided, "
        "as without two pairs that differ. Pooled: points; of each seed the mean over the cells, of these that of the seeds "
        "with its 95% t-interval, as cells of a seed share weights and batches and are not independent. Diverged: runs of both "
        "without an accuracy; a seed is pooled only where it has all cells, so that each mean is over the same ones.",
        texts=("against", "cells"),
        name="summary",
    )


def _kernels(grid: Grid, cell: Cell) -> str:
    """What computed; said where it is the same for all variants."""
    said = {(run.config.backend, run.kernels) for name in grid.variants for run in grid.runs(cell, name)}
    if len(said) != 1:
        return ""
    ((backend, kernels),) = said
    if none_compiled(backend, kernels):
        return f", {NONE_COMPILED}"
    names = {"cpu": "compiled sparse kernels", "reference": "reference kernels", "dense": "dense kernels"}
    return f", {names.get(kernels, f'kernels {kernels}')}"  # "tuned (triton, dense)"
