"""Analyses of the networks of runs -> tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from tost.analysis.activations import Activations, NetworkActivations
from tost.analysis.curvature import NetworkCurvature
from tost.analysis.gradient_flow import GradientFlow, NetworkGradients
from tost.analysis.of_runs import Origin
from tost.analysis.pswish import PSwishCurves
from tost.analysis.surface import Surface, Surfaces
from tost.report.sheet import Cell, Number, Sheet, Spread

__all__ = ["activations_sheets", "batches_of", "epoch_name", "gradients_sheet", "pswish_sheet", "seeds_alike", "surface_sheet"]

Measured = TypeVar("Measured", NetworkActivations, NetworkCurvature, NetworkGradients, Surface)


def epoch_name(origin: Origin) -> str:
    """E.g. `epoch 5, ghosts alive`."""
    epoch = "initialisation" if origin.epoch == 0 else f"epoch {origin.epoch}"
    return epoch + (", ghosts alive" if origin.form == "training" else "")


def batches_of(found: GradientFlow) -> str:
    """E.g. `10 batches of training images`."""
    return f"{found.batches} batch{'es' if found.batches > 1 else ''} of training images"


def seeds_alike(found: Sequence[Measured]) -> dict[tuple[str, int, str], list[Measured]]:
    """(variant, epoch, form) -> those of every seed: what one row or one point shows."""
    groups: dict[tuple[str, int, str], list[Measured]] = {}
    for one in found:
        groups.setdefault((one.origin.variant, one.origin.epoch, one.origin.form), []).append(one)
    return groups


def _spread(values: Sequence[float], form: str = ".2f", spread_form: str | None = None) -> Cell:
    """Mean and standard deviation; inf where a network of the group overflowed."""
    return Spread(values, form, spread_form) if all(map(math.isfinite, values)) else Number(math.inf, form)


def surface_sheet(found: Surfaces) -> Sheet:
    """A row for each variant and epoch: how steep and how wide the valley is."""
    rows: list[tuple[Cell, ...]] = []
    chance = math.log(found.classes)
    for (variant, _, _), group in seeds_alike(found.surfaces).items():
        rises = ([rise for one in group if (rise := one.rise(found.steps, radius)) is not None] for radius in (0.1, 0.25, 0.5))
        rows.append(
            (
                variant,
                epoch_name(group[0].origin),
                _spread([one.centre for one in group], ".3f"),
                *(_spread(rise, ".3g", ".2g") for rise in rises),
                _spread([100 * one.share_below(one.centre + 1) for one in group], ".1f"),
                _spread([100 * one.share_below(chance) for one in group], ".1f"),
            )
        )
    return Sheet(
        f"Loss around the network: {found.title}",
        (
            "variant",
            "network",
            "loss",
            "rise at 0.1",
            "rise at 0.25",
            "rise at 0.5",
            "area with a rise of at most 1, %",
            "area below chance, %",
        ),
        tuple(rows),
        f"Cross entropy of {found.images} {found.part} images on {len(found.steps)} x {len(found.steps)} points, in eval mode; "
        "mean and standard deviation of the seeds. Directions: random, masked, each filter's as long as its active weights. "
        "Rise: mean over the points at this distance from the network; empty where the grid is too "
        "coarse. Area: of the square from -1 to 1 along both directions. "
        f"Chance: ln {found.classes} = {chance:.3f}.",
        texts=("network",),
    )


def activations_sheets(found: Activations) -> list[Sheet]:
    """A row for each variant and epoch; and a table with a row for each layer."""
    groups = seeds_alike(found.networks)
    rows = tuple(
        (
            variant,
            epoch_name(group[0].origin),
            group[0].functions,
            _spread([100 * one.mean for one in group]),
            _spread([100 * one.overall for one in group]),
        )
        for (variant, _, _), group in groups.items()
    )
    note = (
        f"Percent of the activations a with |a| <= {found.threshold:g}, over {found.images} test images, in eval mode: mean ± "
        "standard deviation over the seeds."
    )
    names = list(dict.fromkeys(layer.name for one in found.networks for layer in one.layers))
    layers: list[tuple[Cell, ...]] = []
    for name in names:
        of_group = (
            [100 * layer.fraction for one in group for layer in one.layers if layer.name == name] for group in groups.values()
        )
        layers.append((name, *(Spread(values) for values in of_group)))
    header = [f"{variant}, {epoch_name(group[0].origin)}" for (variant, _, _), group in groups.items()]
    return [
        Sheet(
            f"Activations near zero: {found.title}",
            ("variant", "network", "functions", "mean of the layers, %", "of all activations, %"),
            rows,
            note,
            texts=("network", "functions"),
        ),
        Sheet(
            f"Activations near zero, layer by layer: {found.title}",
            ("layer", *(f"{name}, %" for name in header)),
            tuple(layers),
            note,
            name="layers",
        ),
    ]


def gradients_sheet(found: GradientFlow) -> Sheet:
    """A row for each variant and epoch."""
    rows = []
    for (variant, _, _), group in seeds_alike(found.networks).items():
        weakest = min(group[0].norms.layers, key=lambda name: group[0].norms.layers[name])
        rows.append(
            (
                variant,
                epoch_name(group[0].origin),
                _spread([one.norms.total for one in group], ".4g", ".2g"),
                _spread([one.norms.summed for one in group], ".4g", ".2g"),
                weakest.removesuffix(".weight"),
                Number(group[0].norms.layers[weakest], ".3g"),
            )
        )
    seed = found.networks[0].origin.seed
    return Sheet(
        f"Gradient flow: {found.title}",
        ("variant", "network", "norm of the gradient", "sum of the layers' norms", f"weakest layer (seed {seed})", "its norm"),
        tuple(rows),
        f"Of the cross entropy, over the active weights; mean over {batches_of(found)}, BatchNorm on "
        "those of the batch; mean ± standard deviation over the seeds.",
        texts=("network", f"weakest layer (seed {seed})"),
    )


def pswish_sheet(found: PSwishCurves) -> Sheet:
    """A row for each sharpness: how far it is from ReLU."""
    rows = []
    for curve in found.curves:
        distances = [abs(value - max(x, 0.0)) for x, value in zip(found.inputs, curve.values, strict=True)]
        low = min(curve.values)
        rows.append(
            (
                "inf (ReLU)" if math.isinf(curve.beta) else f"{curve.beta:g}",
                Number(max(distances), ".4f"),
                Number(low, ".4f"),
                Number(found.inputs[curve.values.index(low)] if low < 0 else None, ".2f"),
                Number(max(curve.slopes), ".3f"),
            )
        )
    return Sheet(
        "PSwish: x * sigmoid(beta x)",
        ("beta", "largest distance to ReLU", "lowest value", "at x", "steepest slope"),
        tuple(rows),
        f"On a grid of inputs from {found.inputs[0]:g} to {found.inputs[-1]:g}. The distance is 0.2785 / beta.",
    )
