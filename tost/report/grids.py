"""A grid of runs -> a table for each density, and a picture: accuracy against density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tost.choices import check_choice
from tost.method_grid import Grid
from tost.paired import mean_and_spread
from tost.report.figures import COLOURS, MARKERS, new_figure, save
from tost.report.tables import Sheet, format_paired

__all__ = ["grid_sheets", "save_grid_figure"]


def grid_sheets(grid: Grid, baselines: Sequence[str]) -> list[Sheet]:
    """A table for each density: accuracy of every variant, and its paired differences to each of `baselines`.

    Raises:
        ValueError: a baseline is no variant.
    """
    for baseline in baselines:
        check_choice("baselines", baseline, list(grid.variants))
    sheets = []
    for density, variants in grid.results.items():
        rows = []
        for name, results in variants.items():
            mean, spread = mean_and_spread(grid.accuracies(density, name))
            kept = results[0].accounting
            against = ["" if name == other else format_paired(grid.against(density, name, other)) for other in baselines]
            rows.append(
                (
                    name,
                    f"{100 * mean:.2f}" + (f" ± {100 * spread:.2f}" if len(results) > 1 else ""),
                    *against,
                    f"{kept.weights_kept:,} of {kept.weights_prunable:,}",
                )
            )
        sheets.append(
            Sheet(
                f"{100 * (1 - density):g}% sparse: {_subject(grid)}",
                ("mask", "test accuracy %", *(f"paired difference to {other}" for other in baselines), "weights kept"),
                tuple(rows),
                "Accuracy after the last step: mean ± standard deviation. Difference: points, with its 95% t-interval, over runs "
                "of the same initial weights and batches.",
            )
        )
    return sheets


def save_grid_figure(grid: Grid, path: str | Path) -> None:
    """Mean accuracy of every variant against sparsity, with its standard deviation. PNG, or what `path`'s suffix says."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    densities = sorted(grid.results, reverse=True)
    ticks = range(len(densities))
    for i, name in enumerate(grid.variants):
        cells = [mean_and_spread(grid.accuracies(density, name)) for density in densities]
        axes.errorbar(
            ticks,
            [100 * mean for mean, _ in cells],
            [100 * spread for _, spread in cells],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i // len(COLOURS) % len(MARKERS)],
            linestyle=("-", "--", ":")[i // len(COLOURS) % 3],
            capsize=3,
            label=name,
        )
    axes.set_xticks(list(ticks), [f"{100 * (1 - density):g}" for density in densities])
    axes.set_xlabel("weights removed, %")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(_subject(grid))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    save(figure, path)


def _subject(grid: Grid) -> str:
    config, count = grid.base, len(grid.seeds)
    steps = next(iter(next(iter(grid.results.values())).values()))[0].history[-1]["step"]
    return f"{config.model_name} on {config.dataset}, {steps} steps, {count} seed{'s' if count > 1 else ''}"
