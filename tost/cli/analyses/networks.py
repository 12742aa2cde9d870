"""`tost analyze surface | curvature | activations | gradients | pswish`: what training leads to, and what the tweaks do to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from tost.cli.analyses.action import Action, add_output, add_runs, counting, epochs_of, runs_of
from tost.cli.options import Parser, add_config, config_of

if TYPE_CHECKING:
    from tost.analysis import Activations, Curvature, GradientFlow, PSwishCurves, Surfaces


def _surface_options(parser: Parser) -> None:
    add_runs(parser)
    parser.add_argument("--points", type=int, default=51, help="steps from -1 to 1 along each direction, an odd number")
    parser.add_argument("--images", type=int, default=128, help="how many images the loss is the mean over")
    parser.add_argument("--part", type=str, default="train", help="which images: train (unaugmented) or test")
    parser.add_argument(
        "--form", type=str, default="training", help="of networks with living ghosts: training (with them) or finalized"
    )
    parser.add_argument("--overwrite", action="store_true", help="measure anew what was measured already")


def _surface(options: Namespace) -> Surfaces:
    results, epochs = runs_of(options), epochs_of(options)
    from tost.analysis import analyze_surface

    with counting("rows", len(results) * len(epochs or [0]) * options.points) as progress:
        return analyze_surface(
            results,
            epochs,
            folder=Path(options.out) / "surface-rows",
            points=options.points,
            images=options.images,
            part=options.part,
            form=options.form,
            seed=options.seed,
            overwrite=options.overwrite,
            progress=progress,
            data_dir=options.data_dir,
        )


def _curvature_options(parser: Parser) -> None:
    add_runs(parser)
    parser.add_argument("--batches", type=int, default=10, help="batches of training images, each with a Hessian of its own")
    parser.add_argument("--batch_size", type=int, default=128, help="images in each")
    parser.add_argument("--count", type=int, default=1, help="eigenvalues of each")
    parser.add_argument("--which", type=str, default="LA", help="LA: the largest; LM: the largest in size")
    parser.add_argument(
        "--parameters", type=str, default="weights", help="what moves: weights (those kept) or all (biases and BatchNorm, too)"
    )
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative, of the eigenvalues")
    parser.add_argument("--line", action="store_true", help="also the test loss along the top eigenvector of the first batch")
    parser.add_argument("--reach", type=float, default=0.5, help="how far, to either side")
    parser.add_argument("--points", type=int, default=21, help="places along it, an odd number")
    parser.add_argument("--images", type=int | None, default=None, help="test images, the first so many (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="measure anew what was measured already")


def _curvature(options: Namespace) -> Curvature:
    results, epochs = runs_of(options), epochs_of(options)
    from tost.analysis import Line, Measure, analyze_curvature

    line = Line(options.reach, options.points, options.images)  # looked at in any case
    names = ("batches", "batch_size", "count", "which", "parameters", "tolerance", "seed")
    measure = Measure(**{name: options[name] for name in names}, line=line if options.line else None)
    folder = Path(options.out) / "curvature-batches"
    with counting("networks", len(results) * len(epochs or [0])) as progress:
        return analyze_curvature(
            results,
            epochs,
            measure,
            folder=folder,
            overwrite=options.overwrite,
            progress=progress,
            data_dir=options.data_dir,
        )


def _activations_options(parser: Parser) -> None:
    add_runs(parser)
    parser.add_argument("--threshold", type=float, default=0.01, help="up to which size an activation counts as none")


def _activations(options: Namespace) -> Activations:
    results, epochs = runs_of(options), epochs_of(options)
    from tost.analysis import analyze_activations

    with counting("networks", len(results) * len(epochs or [0])) as progress:
        return analyze_activations(results, epochs, options.threshold, progress, options.data_dir)


def _gradients_options(parser: Parser) -> None:
    add_runs(parser)
    parser.add_argument("--batches", type=int, default=10, help="batches of training images that norms are averaged over")


def _gradients(options: Namespace) -> GradientFlow:
    results = runs_of(options)
    from tost.analysis import analyze_gradient_flow
    from tost.analysis.of_runs import kept_epochs

    epochs = epochs_of(options) or kept_epochs(results)
    with counting("networks", len(results) * len(epochs)) as progress:
        return analyze_gradient_flow(results, epochs, options.batches, options.seed, progress, options.data_dir)


def _pswish_options(parser: Parser) -> None:
    parser.add_argument(
        "--betas", type=tuple[float, ...] | float, default=(1.0, 2.0, 5.0, 10.0, math.inf), help="sharpnesses to draw; .inf: ReLU"
    )
    add_config(parser, ("recipe", "steps", "schedule", "milestones", "drop_every"))
    parser.set_defaults({"steps": 1000})
    add_output(parser)


def _pswish(options: Namespace) -> PSwishCurves:
    from tost.analysis import analyze_pswish

    betas = (options.betas,) if isinstance(options.betas, float) else options.betas
    return analyze_pswish(config_of(options, without=("betas", "out")), betas)  # Adam has betas, too


SURFACE = Action("the loss around networks of runs, along two random directions: contours and 3-D", _surface_options, _surface)
CURVATURE = Action(
    "the largest eigenvalues of the Hessian over the active weights of networks of runs", _curvature_options, _curvature
)
ACTIVATIONS = Action(
    "activations near zero in networks of runs, layer by layer (ToST's Table 1)", _activations_options, _activations
)
GRADIENTS = Action(
    "the gradient's norm in networks of runs, by epoch and by layer (default: all epochs that were kept)",
    _gradients_options,
    _gradients,
)
PSWISH = Action("the ghost swish and its slope at several beta, and how a recipe fades the ghosts", _pswish_options, _pswish)
