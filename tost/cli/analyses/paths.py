"""`tost analyze path | filters | density | curves`: what SplitLBI found while it trained, after its paper (arXiv 2007.02010)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from tost.cli.analyses.action import (
    Action,
    add_drawing,
    add_epochs,
    add_output,
    add_run_folders,
    counting,
    epochs_of,
    runs_of,
)
from tost.cli.options import Parser, numbers_of

if TYPE_CHECKING:
    from tost.analysis import FilterPath, Filters, PathDensities, TrainingCurves


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


def _filters_options(parser: Parser) -> None:
    parser.add_argument("run", type=str, help="folder of a finished run; of splitlbi, filters in the support are marked")
    parser.add_argument("--layer", type=str, help="name of the Conv2d or Linear whose filters they are")
    add_epochs(parser, "all that were kept")
    numbers = tuple[int, ...] | int | str
    parser.add_argument(
        "--filters",
        type=numbers | None,
        default=None,
        help="which, as in 0,3,5 (default: up to twelve, from the first that entered the support to the last)",
    )
    parser.add_argument("--images", type=numbers, default=(0,), help="which test images the guided gradients are of")
    parser.add_argument("--steps", type=int, default=128, help="of gradient ascent on the input")
    parser.add_argument("--jitter", type=int, default=2, help="pixels by which the input is shifted at each step, at most")
    add_drawing(parser)


def _filters(options: Namespace) -> Filters:
    from tost.analysis import analyze_filters
    from tost.analysis.of_runs import kept_epochs
    from tost.runs import RunFolder

    result = RunFolder(Path(options.run)).load()
    epochs = epochs_of(options) or kept_epochs([result])
    with counting("networks", len(epochs)) as progress:
        return analyze_filters(
            result,
            options.layer,
            epochs,
            None if options.filters is None else numbers_of(options.filters, "filters"),
            numbers_of(options.images, "images"),
            steps=options.steps,
            jitter=options.jitter,
            seed=options.seed,
            progress=progress,
            data_dir=options.data_dir,
        )


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
FILTERS = Action(
    "what excites filters of a layer along a training, those in the support marked (SplitLBI's Figs. 1, 2)",
    _filters_options,
    _filters,
)
DENSITY = Action(
    "density along solution paths by epoch, with its spread over the seeds (SplitLBI's Fig. 8)", _density_options, _density
)
CURVES = Action(
    "loss, accuracy and density by epoch; runs that differ in the seed alone are one line (SplitLBI's Figs. 3, 4, 6)",
    _curves_options,
    _curves,
)
