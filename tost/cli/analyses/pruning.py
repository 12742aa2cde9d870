"""`tost analyze iterations | saliency | recovery | layers`: what pruning methods do, after FORCE (arXiv 2006.09081)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from tost.cli.analyses.action import OUT, Action, add_computing, counting
from tost.cli.options import PRUNING, Parser, add_config, add_running, config_of, words
from tost.cli.output import note
from tost.config import Config
from tost.recipe import Recipe

if TYPE_CHECKING:
    from tost.analysis import Iterations, Layers, Recovery, Saliencies, Setting

# a network on which extreme sparsities tell methods apart, and that trains in seconds
_DEFAULTS = {"model": "lenet5_caffe", "density": 0.005, "batch_size": 64, "steps": 620, "eval_every": 10, "out": OUT}
_PRUNING = (*(name for name in PRUNING if name != "method"), "out")
_SWEPT = ("method", "method_steps", "masks", "mask_check", "recipe", "teacher")  # a recipe without distillation
_TRAINING = tuple(f.name for f in dataclasses.fields(Config) if f.name not in _SWEPT)


def _add_setting(parser: Parser, fields: Sequence[str], methods: Sequence[str]) -> None:
    add_config(parser, fields)
    parser.set_defaults({name: value for name, value in _DEFAULTS.items() if name in fields})
    parser.add_argument("--seeds", type=int, default=5, help="number of networks; their seeds count up from --seed")
    parser.add_argument(
        "--methods", type=tuple[str, ...] | str, default=tuple(methods), help="pruning methods, see tost.methods()"
    )


def _add_batches(parser: Parser) -> None:
    parser.add_argument("--batches", type=int, default=5, help="batches over which the gradients of a saliency are averaged")


def _setting(options: Namespace) -> Setting:
    """Networks and density that the options ask for; every name is looked up before the work."""
    config = dataclasses.replace(config_of(options, without=("method",)), recipe=Recipe.vanilla())
    dataclasses.replace(config, method_steps=None).check_names()  # the steps are for those of `methods` that take several
    if options.seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {options.seeds}")
    if getattr(options, "jobs", 1) < 1:
        raise ValueError(f"jobs: expected at least 1, got {options.jobs}")
    from tost.analysis import Setting

    setting = Setting(config, tuple(range(config.seed, config.seed + options.seeds)))
    for name in words(options.methods):
        setting.of(name, config.seed)
    return setting


def _iterations_options(parser: Parser) -> None:
    _add_setting(parser, _TRAINING, ("iter_snip", "force"))
    parser.add_argument(
        "--iterations", type=tuple[int, ...], default=(1, 2, 5, 10, 20, 50, 100), help="numbers of steps of the methods"
    )
    _add_batches(parser)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, sharing the threads")
    add_running(parser)


def _iterations(options: Namespace) -> Iterations:
    setting, methods = _setting(options), words(options.methods)
    from tost.analysis import analyze_iterations

    with counting("pruning", len(methods) * len(options.iterations) * len(setting.seeds)) as progress:
        return analyze_iterations(
            setting,
            methods,
            options.iterations,
            options.batches,
            jobs=options.jobs,
            overwrite=options.overwrite,
            progress=progress,
            bars=True,
            report=note,
        )


def _saliency_options(parser: Parser) -> None:
    _add_setting(parser, _PRUNING, ("snip", "iter_snip", "force"))
    _add_batches(parser)
    add_computing(parser)


def _saliency(options: Namespace) -> Saliencies:
    setting, methods = _setting(options), words(options.methods)
    from tost.analysis import analyze_saliency

    with counting("pruning", len(methods) * len(setting.seeds)) as progress:
        return analyze_saliency(setting, methods, options.batches, progress)


def _recovery_options(parser: Parser) -> None:
    # steps are counted before any repair
    _add_setting(parser, [name for name in _PRUNING if name != "keep_alive"], ("force", "iter_snip"))
    add_computing(parser)


def _recovery(options: Namespace) -> Recovery:
    setting, methods = _setting(options), words(options.methods)
    from tost.analysis import analyze_recovery

    with counting("pruning", len(methods) * len(setting.seeds)) as progress:
        return analyze_recovery(setting, methods, progress)


def _layers_options(parser: Parser) -> None:
    _add_setting(parser, _PRUNING, ("random", "magnitude", "snip", "grasp", "synflow", "iter_snip", "force"))
    add_computing(parser)


def _layers(options: Namespace) -> Layers:
    setting, methods = _setting(options), words(options.methods)
    from tost.analysis import analyze_layers

    with counting("pruning", len(methods) * len(setting.seeds)) as progress:
        return analyze_layers(setting, methods, progress)


ITERATIONS = Action(
    "saliency, accuracy and time against the number of steps T (FORCE's Fig. 4)", _iterations_options, _iterations
)
SALIENCY = Action("saliency of sparsified against that of pruned networks (FORCE's Figs. 6 and 7)", _saliency_options, _saliency)
RECOVERY = Action("weights that every step prunes and recovers (FORCE's Fig. 9)", _recovery_options, _recovery)
LAYERS = Action("weights left in each layer (FORCE's Figs. 8 and 13)", _layers_options, _layers)
