"""Finished runs of a folder -> lotteries, and grids: runs that differ only in recipe and seed belong together."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tost.config import Config
from tost.files import DamagedFile, read_json
from tost.grid import Cell, Grid
from tost.model_address import is_address
from tost.recipe import Recipe, recipe_name
from tost.runs import Result, RunFolder
from tost.searches import FOUND
from tost.tickets import Lottery
from tost.variants import LOTTERY, changes_of

__all__ = ["grids_of", "lotteries_of"]


def grids_of(results: Sequence[Result]) -> list[Grid]:
    """Comparisons of recipes: runs that differ in nothing but recipe and seed are a cell.

    Cells with the same recipes and seeds make a grid where else only network, data set, method and density differ. In each cell
    only seeds that all its recipes ran count. The vanilla recipe is the baseline where there is one. Recipes that share no seed
    with the baseline are compared in a grid of their own. Those of one network and data set come with many weights first.
    """
    groups: dict[str, dict[Cell, dict[Recipe, dict[int, Result]]]] = {}
    for result in sorted(results, key=_place):
        recipes = groups.setdefault(_shared(result.config), {}).setdefault(_cell(result), {})
        recipes.setdefault(result.config.recipe, {})[result.config.seed] = result

    grids: dict[tuple[str, tuple[Recipe, ...], tuple[int, ...]], dict[Cell, dict[str, tuple[Result, ...]]]] = {}
    for shared, cells in groups.items():
        for cell, runs in cells.items():
            for together, seeds in _together(runs):
                of_cell = {recipe_name(recipe): tuple(runs[recipe][seed] for seed in seeds) for recipe in together}
                grids.setdefault((shared, together, seeds), {})[cell] = of_cell
    return [_grid(together, seeds, found) for (_, together, seeds), found in grids.items()]


def _grid(recipes: Sequence[Recipe], seeds: tuple[int, ...], results: Mapping[Cell, Mapping[str, tuple[Result, ...]]]) -> Grid:
    names = [recipe_name(recipe) for recipe in recipes]
    first = next(iter(results.values()))[names[0]][0]
    variants = {name: changes_of(name, recipe) for name, recipe in zip(names, recipes, strict=True)}
    return Grid(first.config, tuple(results), variants, (names[0],), seeds, results)


def _together(runs: Mapping[Recipe, Mapping[int, Result]]) -> Iterator[tuple[tuple[Recipe, ...], tuple[int, ...]]]:
    """Recipes that can be compared, and the seeds that all of them ran."""
    recipes = sorted(runs, key=lambda recipe: (recipe != Recipe.vanilla(), recipe_name(recipe)))
    while recipes:
        seeds = set(runs[recipes[0]])
        together = [recipes[0]]
        for recipe in recipes[1:]:
            if seeds & set(runs[recipe]):
                seeds &= set(runs[recipe])
                together.append(recipe)
        yield tuple(together), tuple(sorted(seeds))
        recipes = [recipe for recipe in recipes if recipe not in together]


def _shared(config: Config) -> str:
    """All that has an effect, but for what makes a cell, recipe and seed."""
    values = config.in_effect.as_dict()
    for name in ("dataset", "method", "method_steps", "density", "masks", "mask_check", "recipe", "seed", "out"):
        del values[name]
    if not is_address(config.model):
        del values["model"]  # of yours two may have the same name: each has tables of its own
    # a teacher, or run to start from, that differs only in the seed is the same one
    weights = None if config.weights is None else _weights_of(Path(config.weights))
    return json.dumps({**values, "teacher": _run_of(config.teacher), "weights": weights}, sort_keys=True)


def _cell(result: Result) -> Cell:
    config = result.config.in_effect
    if config.backend == "dense":
        return Cell(config.model, config.dataset, "", 1.0)
    method = config.method if config.method_steps is None else f"{config.method}, {config.method_steps} steps"
    density = config.density
    if config.masks is not None:
        density = float(f"{result.accounting.density:.4g}")
        method = _masks_of(Path(config.masks))
    return Cell(config.model, config.dataset, method + ("" if config.mask_check == "none" else f", {config.mask_check}"), density)


def _masks_of(path: Path) -> str:
    """What chose the masks at `path`: a lottery, a search, the method of a run, or else the name of the file."""
    if path.parent.name == FOUND:
        return path.stem.rpartition("-")[0].replace("-", " ")
    folder = path.parent if path.name == "masks.safetensors" else path
    if folder.parent.name.startswith("lottery-"):
        return LOTTERY
    of_run = _run_of(str(folder))
    return f"{of_run['method']}, of a run" if isinstance(of_run, dict) else path.name


def _weights_of(path: Path) -> list[Any]:
    """The run whose network it is, as `_run_of` says it, and which of its networks."""
    return [_run_of(str(path)), ""] if path.is_dir() else [_run_of(str(path.parent)), path.name]


def _run_of(folder: str | None) -> dict[str, Any] | str | None:
    """The configuration of the run there, without seed and place; the folder itself where there is none."""
    file = RunFolder(Path(folder)).config if folder is not None else None
    if file is None or not file.is_file():
        return folder
    try:
        values = Config.from_dict(read_json(file)).as_dict()
    except (ValueError, TypeError, OSError):
        return folder
    return {name: value for name, value in values.items() if name not in ("seed", "out")}


def _place(result: Result) -> tuple[str, str, int]:
    return result.config.model, result.config.dataset, -result.accounting.weights_kept


def lotteries_of(results: Sequence[Result]) -> tuple[list[Lottery], list[Result]]:
    """The finished lotteries whose last rounds are among these runs, and the runs that are no round of any.

    A lottery that another one goes on with is left out: all its rounds are there. Warns of a damaged one.
    """
    found: list[Lottery] = []
    for result in results:
        record = RunFolder(result.run_dir).lottery
        if record.is_file():
            try:
                found.append(Lottery.load(record))
            except (DamagedFile, FileNotFoundError) as error:
                warnings.warn(f"lottery: left out: {error}", UserWarning, stacklevel=2)
    found.sort(key=lambda one: len(one.rounds), reverse=True)
    lotteries: list[Lottery] = []
    shown: set[Path] = set()
    for one in found:
        folders = {entry.result.run_dir.resolve() for entry in one.rounds}
        if not folders <= shown:
            lotteries.append(one)
            shown |= folders
    return lotteries, [result for result in results if result.run_dir.resolve() not in shown]
