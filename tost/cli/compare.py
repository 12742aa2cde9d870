"""`tost compare`: recipes against each other, in pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tost.cli.options import Parser, add_config, add_running, config_of, set_threads
from tost.cli.output import note, print_json, print_sheets
from tost.config import RECIPES, Config
from tost.recipe import Recipe

if TYPE_CHECKING:
    from tost.old_experiment import Comparison
    from tost.report import Sheet

HELP = "paired comparison of recipes"


def parser() -> Parser:
    compare = Parser(description="Train recipes against each other on the same masks, initial weights and batches.")
    add_config(compare, [f.name for f in dataclasses.fields(Config) if f.name != "recipe"])
    compare.add_argument(
        "--variants",
        type=dict,
        default={name: name for name in reversed(RECIPES)},
        help="name -> 'vanilla', 'tost' or settings of the recipe (others as in 'tost'); the first is the baseline",
    )
    compare.add_argument("--seeds", type=int, default=3, help="number of pairs; their seeds count up from --seed")
    compare.add_argument(
        "--timing_rounds", type=int, default=0, help="also time a step of each backend, this many turns of 2 steps"
    )
    compare.add_argument("--jobs", type=int, default=1, help="runs at the same time, sharing the threads")
    add_running(compare)
    return compare


def run(options: Namespace) -> None:
    base = dataclasses.replace(config_of(options), recipe=Recipe.vanilla())
    base.check_names()
    variants = _variants(options.variants)
    if options.seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {options.seeds}")
    if options.jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {options.jobs}")
    set_threads(options.threads)
    import torch

    from tost.old_experiment import compare
    from tost.report import accuracy_sheet, require_matplotlib, save_figure, step_time_sheet

    require_matplotlib()  # before minutes of training, not after
    comparison = compare(
        base,
        variants,
        range(base.seed, base.seed + options.seeds),
        timing_rounds=options.timing_rounds,
        jobs=options.jobs,
        overwrite=options.overwrite,
        progress=True,
        report=note,
    )
    out = Path(base.out)
    sheets = [accuracy_sheet(comparison)]
    if comparison.step_times:
        sheets.append(step_time_sheet(comparison.step_times, torch.get_num_threads()))
    _save(comparison, sheets, out / "comparison")
    save_figure(comparison, out / "comparison.png")
    if options.json:
        print_json(comparison.as_dict())
    else:
        print_sheets(sheets)
        print(f"picture {out / 'comparison.png'}, records {out / 'comparison.json'}, runs in {out}")


def _variants(values: dict[str, Any]) -> dict[str, Recipe]:
    recipes = {}
    for name, value in values.items():
        try:
            recipes[str(name)] = Config(recipe=value).recipe
        except (ValueError, TypeError) as error:
            raise ValueError(f"variants: {name}: {error}") from None
    return recipes


def _save(comparison: Comparison, sheets: Sequence[Sheet], stem: Path) -> None:
    from tost.files import write_atomic

    comparison.save(stem.with_suffix(".json"))
    write_atomic(stem.with_suffix(".md"), "\n".join(sheet.markdown() for sheet in sheets))
