"""A grid as `tost.compare` returns it, without the training: accuracies of a variant's choice in two cells."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.tost.finished_run import finished
from tost.config import Config
from tost.grid import Cell, Diverged, Grid
from tost.recipe import Recipe
from tost.runs import Result
from tost.step_times import StepTime

DENSITIES = (0.05, 0.02)
TIMES = (
    StepTime("dense", "dense", False, "contiguous", 10.0, 9.0, 11.0, 4),
    StepTime("sparse", "cpu", True, "contiguous", 5.0, 4.0, 6.0, 4),
)


def small_grid(out: Path, accuracies: Mapping[str, Sequence[Sequence[float | None]]], baselines: Sequence[str] = ()) -> Grid:
    """variant -> density -> accuracy of each seed (None: it diverged); the first variant is vanilla, the others ToST."""
    base = Config(recipe=Recipe.vanilla(), method="erk", steps=3, out=str(out), data_dir=str(out / "data"))
    one = finished(out, steps=3)
    variants = {name: {"recipe": "vanilla" if i == 0 else "tost"} for i, name in enumerate(accuracies)}
    seeds = tuple(range(len(next(iter(accuracies.values()))[0])))

    def run(density: float, variant: str, seed: int, accuracy: float | None) -> Result | Diverged:
        if accuracy is None:
            return Diverged("the loss became nan at step 2 of 3")
        fields = {**base.as_dict(), **variants[variant], "density": density, "seed": seed}
        return dataclasses.replace(one, config=Config.from_dict(fields), test_accuracy=accuracy)

    results = {
        Cell("resnet20", "mnist5k", "erk", density): {
            name: tuple(run(density, name, seed, accuracy) for seed, accuracy in zip(seeds, rows[i], strict=True))
            for name, rows in accuracies.items()
        }
        for i, density in enumerate(DENSITIES)
    }
    return Grid(
        base, tuple(results), variants, tuple(baselines) or (next(iter(accuracies)),), seeds, results, TIMES, {"cores": 2}
    )
