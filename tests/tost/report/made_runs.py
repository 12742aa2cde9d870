"""Results and comparisons that nobody trained."""

from pathlib import Path
from typing import Any

from tests.tost.finished_run import made
from tost.accounting import Accounting
from tost.config import Config
from tost.grid import Grid
from tost.recipe import Recipe
from tost.report import grids_of
from tost.runs import Result
from tost.step_times import StepTime

TIMES = (
    StepTime("dense", "dense", False, "channels_last", 80.0, 79.0, 82.0, 20),
    StepTime("sparse", "cpu", False, "batch_last", 20.0, 19.0, 21.0, 20),
    StepTime("sparse", "dense", True, "contiguous", 160.0, 159.0, 161.0, 20),
)


def result(accuracy: float, recipe: Recipe, seed: int = 0, **changes: Any) -> Result:
    return made(
        Config(recipe=recipe, seed=seed, **changes),
        Path("runs/x"),
        test_accuracy=accuracy,
        history=(
            {"epoch": 1, "step": 10, "test_accuracy": accuracy / 2},
            {"epoch": 2, "step": 20},
            {"epoch": 3, "step": 30, "test_accuracy": accuracy},
        ),
        accounting=Accounting(13530, 270608, 0.05, 0, 15108),
        ghost_weights_at_start=29696 if recipe.ghost_skip else 0,
        seconds=12.0,
        kernels="cpu",
    )


def pair() -> Grid:
    """Vanilla against ToST in one cell, two seeds."""
    accuracies = {Recipe.vanilla(): (0.90, 0.92), Recipe.tost(): (0.91, 0.91)}
    (grid,) = grids_of([result(a, recipe, seed) for recipe, both in accuracies.items() for seed, a in enumerate(both)])
    return grid
