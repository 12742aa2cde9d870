"""Finished runs of a folder -> lotteries, and comparisons: runs that differ only in recipe and seed belong together."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from tost.files import DamagedFile
from tost.old_experiment import Comparison
from tost.recipe import Recipe, recipe_name
from tost.runs import Result, RunFolder
from tost.tickets import Lottery

__all__ = ["comparisons_of", "lotteries_of"]


def comparisons_of(results: Sequence[Result]) -> list[Comparison]:
    """Group runs by all that has an effect but recipe, seed and folder. In each group only seeds that all its recipes ran count.

    The vanilla recipe is the baseline where there is one. Recipes that share no seed with the baseline are compared in a
    group of their own. Those of one network and data set come with many weights first.
    """
    groups: dict[str, dict[Recipe, dict[int, Result]]] = {}
    for result in results:
        values = result.config.in_effect.as_dict()
        for name in ("recipe", "seed", "out"):
            del values[name]
        runs = groups.setdefault(json.dumps(values, sort_keys=True), {})
        runs.setdefault(result.config.recipe, {})[result.config.seed] = result

    comparisons = []
    for runs in groups.values():
        recipes = sorted(runs, key=lambda recipe: (recipe != Recipe.vanilla(), recipe_name(recipe)))
        while recipes:
            seeds = set(runs[recipes[0]])
            together = [recipes[0]]
            for recipe in recipes[1:]:
                if seeds & set(runs[recipe]):
                    seeds &= set(runs[recipe])
                    together.append(recipe)
            recipes = [recipe for recipe in recipes if recipe not in together]
            order = tuple(sorted(seeds))
            comparisons.append(Comparison({recipe_name(r): tuple(runs[r][seed] for seed in order) for r in together}, order))
    return sorted(comparisons, key=_place)


def _place(comparison: Comparison) -> tuple[str, str, int]:
    first = next(iter(comparison.results.values()))[0]
    return first.config.model, first.config.dataset, -first.accounting.weights_kept


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
