"""`tost analyze`: what pruning methods do and what training leads to, as pictures, tables and records."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from tost.cli.analyses import networks, paths, pruning
from tost.cli.analyses.action import Action
from tost.cli.options import Parser, set_threads
from tost.cli.output import show

HELP = "figures of pruning methods and of finished runs"

_ACTIONS: dict[str, Action] = {
    "iterations": pruning.ITERATIONS,
    "saliency": pruning.SALIENCY,
    "recovery": pruning.RECOVERY,
    "layers": pruning.LAYERS,
    "surface": networks.SURFACE,
    "curvature": networks.CURVATURE,
    "activations": networks.ACTIVATIONS,
    "gradients": networks.GRADIENTS,
    "pswish": networks.PSWISH,
    "path": paths.PATH,
    "filters": paths.FILTERS,
    "density": paths.DENSITY,
    "curves": paths.CURVES,
}


def parser() -> Parser:
    analyze = Parser(description="Figures of pruning methods and of finished runs: pictures, tables and a record.")
    analyze.commands = {name: _parser(action) for name, action in _ACTIONS.items()}
    return analyze


def _parser(action: Action) -> Parser:
    parser = Parser(description=action.help[0].upper() + action.help[1:] + ".")
    action.add_options(parser)
    return parser


def add_actions(analyze: Parser) -> None:
    """The subcommands of `analyze`, a part of the root parser by now."""
    actions = analyze.add_subcommands(required=True, dest="what")
    for name, action in _ACTIONS.items():
        actions.add_subcommand(name, analyze.commands[name], help=action.help)


def run(options: Namespace) -> None:
    chosen, stem = options[options.what], Path(options[options.what].out) / options.what
    set_threads(chosen.threads)
    from tost.report import check_figure

    check_figure(stem.with_suffix(".png"), "out")  # before minutes of work, not after
    show(_ACTIONS[options.what].find(chosen), stem, chosen.json)
