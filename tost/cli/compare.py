"""`tost compare`: a grid of recipes, masks or other variants, in pairs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tost.ablations import ABLATIONS, ablation
from tost.cli.launching import add_launcher, launcher_of
from tost.cli.options import Parser, add_config, add_running, add_snapshots, config_of, epochs_of, set_threads, words
from tost.cli.output import note, show
from tost.config import Config
from tost.recipe import Recipe

if TYPE_CHECKING:
    from tost.grid_plan import Plan

HELP = "paired comparison of recipes, masks or other variants"


def parser() -> Parser:
    compare = Parser(
        description="Train variants against each other on the same masks, initial weights and batches: in every cell of "
        "models x datasets x methods x densities, once a seed."
    )
    add_config(compare, [f.name for f in dataclasses.fields(Config) if f.name != "recipe"])
    for axis in ("models", "datasets"):
        compare.add_argument(f"--{axis}", type=tuple[str, ...] | str | None, default=None, help=f"as --{axis[:-1]}, several: A,B")
    compare.add_argument(
        "--methods",
        type=tuple[str, ...] | str | None,
        default=None,
        help="as --method, several; masks of lth (a lottery), splitlbi, slimming, soft-filter and trained-magnitude are found "
        "first, by trainings that all variants share",
    )
    compare.add_argument(
        "--densities", type=tuple[float, ...] | float | str | None, default=None, help="as --density, several: 0.05,0.02"
    )
    compare.add_argument(
        "--variants",
        type=dict | None,
        default=None,
        help="name -> vanilla, tost or a pruning method; or what is different, as {lr: 0.05, ghost_swish: false}: fields of the "
        "configuration and settings of the recipe (others as in `recipe`, or as in tost); {backend: dense}; {teacher: dense, "
        "distillation: 0.9}; {rewind: init}: a lottery; {method: splitlbi, at: 5, start: found}: masks that a training finds, "
        "see tost.compare (default: vanilla and tost)",
    )
    compare.add_argument(
        "--search",
        type=dict | None,
        default=None,
        help="how these trainings (but lotteries) differ from the runs, as {epochs: 20, schedule: constant, split_lbi: {nu: 9}}",
    )
    compare.add_argument("--ablation", type=str | None, default=None, help=f"variants by name: {_ablations()}")
    compare.add_argument(
        "--baselines",
        type=tuple[str, ...] | str | None,
        default=None,
        help="variants that all others are compared with (default: the first, or those of the ablation)",
    )
    compare.add_argument("--seeds", type=int, default=3, help="number of pairs in a cell; their seeds count up from --seed")
    compare.add_argument(
        "--timing_rounds", type=int, default=0, help="also time a step of each backend, this many turns of 2 steps"
    )
    compare.add_argument(
        "--runs",
        type=str | None,
        default=None,
        help="folder of the runs, which comparisons may share: none is trained twice (default: OUT, as for the report)",
    )
    add_launcher(compare)
    add_snapshots(compare)
    add_running(compare)
    return compare


def run(options: Namespace) -> None:
    asked = _asked(options)
    set_threads(options.threads)
    from tost.experiment import compare
    from tost.report import check_figure

    stem = Path(options.out) / "comparison"
    check_figure(stem.with_suffix(".png"), "out")  # before minutes of training, not after
    grid = compare(
        **asked,
        timing_rounds=options.timing_rounds,
        launcher=launcher_of(options),
        snapshots=epochs_of(options.snapshots),
        overwrite=options.overwrite,
        progress=True,
        report=note,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun one process speaks
    if options.runs is not None:
        from tost.runs import list_runs

        list_runs(options.out, grid.run_folders)  # an analysis of OUT looks at these alone
    show(grid, stem, options.json)


def plan_of(options: Namespace) -> Plan:
    """What `run` is going to train."""
    from tost.grid_plan import plan

    return plan(**_asked(options))


def _asked(options: Namespace) -> dict[str, Any]:
    """The question, as `tost.compare` takes it."""
    base = config_of(options, recipe=Recipe.vanilla(), out=options.runs or options.out)
    variants, baselines = _variants(options)
    if options.seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {options.seeds}")
    axes = {name: _axis(options[name]) for name in ("models", "datasets", "methods")}
    return {
        "base": base,
        "variants": variants,
        "seeds": range(base.seed, base.seed + options.seeds),
        **axes,
        "densities": _densities(options.densities),
        "baselines": baselines,
        "search": options.search,
    }


def _variants(options: Namespace) -> tuple[Mapping[str, Any] | None, tuple[str, ...] | None]:
    baselines = None if options.baselines is None else words(options.baselines)
    if options.ablation is None:
        return options.variants, baselines
    chosen = ablation(options.ablation)
    if options.variants is not None:
        raise ValueError(f"variants: expected none beside the ablation {options.ablation!r}, got {list(options.variants)}")
    return chosen.variants, baselines or chosen.baselines


def _axis(value: Any) -> Any:
    """A lone value is an axis of one; words are told apart by commas."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(","))
    return (value,) if isinstance(value, float) else value


def _densities(value: Any) -> Any:
    values = _axis(value)
    try:
        return None if values is None else tuple(map(float, values))
    except ValueError:
        raise ValueError(f"densities: expected numbers as in 0.05,0.02, got {value!r}") from None


def _ablations() -> str:
    return "; ".join(f"{name} ({chosen.about})" for name, chosen in ABLATIONS.items())
