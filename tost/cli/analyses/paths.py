"""`tost analyze path | density | curves`: what SplitLBI found while it trained, after its paper (arXiv 2007.02010)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

from tost.cli.analyses.action import Action, add_output, add_run_folders, runs_of
from tost.cli.options import Parser

if TYPE_CHECKING:
    from tost.analysis import FilterPath, PathDensities, TrainingCurves


def _add_layer(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--layer",
        type=tuple[str, ...] | str | None,
        default=None,
        help=f"names of layers, or patterns as in 'layer1.*' (default: {default})",
    )


def _path_options(parser: Parser) -> None:
    parser.add_argument("run", type=str, help="folder of a run, finished or not, or of a path that tost.optim.SolutionPath wrote")
    _add_layer(parser, "all that have a Gamma")
    add_output(parser)


def _path(options: Namespace) -> FilterPath:
    from tost.analysis import analyze_path

    return analyze_path(options.run, options.layer)


def _density_options(parser: Parser) -> None:
    add_run_folders(parser)
    _add_layer(parser, "only all layers together")
    add_output(parser)


def _density(options: Namespace) -> PathDensities:
    from tost.analysis import analyze_density

    return analyze_density(runs_of(options), options.layer)


def _curves_options(parser: Parser) -> None:
    add_run_folders(parser)
    add_output(parser)


def _curves(options: Namespace) -> TrainingCurves:
    from tost.analysis import analyze_curves

    return analyze_curves(runs_of(options))


PATH = Action("norms of the filters along a solution path, in and out of the support (SplitLBI's Fig. 1)", _path_options, _path)
DENSITY = Action(
    "density along solution paths by epoch, with its spread over the seeds (SplitLBI's Fig. 8)", _density_options, _density
)
CURVES = Action(
    "loss, accuracy and density by epoch; runs that differ in the seed alone are one line (SplitLBI's Figs. 3, 4, 6)",
    _curves_options,
    _curves,
)
