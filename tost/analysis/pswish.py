"""The ghost swish itself: the function and its slope at several sharpnesses, and how a recipe moves both ghosts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tost.checks import integer, number
from tost.config import Config
from tost.ghosts import fade_window, strength_at
from tost.recipe import Recipe
from tost_kernels import pswish

__all__ = ["Curve", "Fade", "PSwishCurves", "analyze_pswish"]

REACH, SPACING = 6.0, 0.02  # inputs from -6 to 6
MOMENTS = 201  # steps at which a fade is looked at


@dataclass(frozen=True)
class Curve:
    """x * sigmoid(beta x) and its derivative, at every input of `PSwishCurves`; beta = inf: ReLU."""

    beta: float
    values: tuple[float, ...]
    slopes: tuple[float, ...]


@dataclass(frozen=True)
class Fade:
    """What a training of `total` steps does to the ghosts of `recipe`.

    Attributes:
        recipe: which ghosts there are.
        total: steps of the training.
        window: first step of the fade, and the first after it.
        steps: that were looked at, from the first to the last.
        alpha: gate of the ghost skips at each; empty without ghost skips.
        beta: sharpness of the ghost swish at each, inf where it is exact ReLU; empty without a ghost swish, and for Mish.
    """

    recipe: Recipe
    total: int
    window: tuple[int, int]
    steps: tuple[int, ...]
    alpha: tuple[float, ...]
    beta: tuple[float, ...]


@dataclass(frozen=True)
class PSwishCurves:
    """A curve for each sharpness, and the fade of a recipe."""

    kind: ClassVar[str] = "pswish"

    inputs: tuple[float, ...]
    curves: tuple[Curve, ...]
    fade: Fade

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; None stands for an infinite beta."""
        fade = dataclasses.asdict(self.fade)
        return {
            "kind": self.kind,
            "inputs": list(self.inputs),
            "curves": [
                {"beta": _finite(curve.beta), "values": list(curve.values), "slopes": list(curve.slopes)} for curve in self.curves
            ],
            "fade": {
                **{name: list(value) if isinstance(value, tuple) else value for name, value in fade.items()},
                "beta": [_finite(beta) for beta in self.fade.beta],
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PSwishCurves:
        """What `as_dict` gave."""
        curves = (Curve(_infinite(c["beta"]), tuple(c["values"]), tuple(c["slopes"])) for c in values["curves"])
        fade = values["fade"]
        start, end = fade["window"]
        return cls(
            tuple(values["inputs"]),
            tuple(curves),
            Fade(
                Recipe.from_dict(fade["recipe"]),
                fade["total"],
                (start, end),
                tuple(fade["steps"]),
                tuple(fade["alpha"]),
                tuple(map(_infinite, fade["beta"])),
            ),
        )


def analyze_pswish(config: Config, betas: Sequence[float] = (1, 2, 5, 10, math.inf), total_steps: int = 1000) -> PSwishCurves:
    """The curves of `betas`, as the training computes them but in float64, and the fade of `config`.

    Args:
        config: its recipe and learning rate schedule decide the fade; nothing else is read.
        betas: sharpnesses > 0, all different; inf: ReLU.
        total_steps: of the training, where `config.steps` does not say it.
    """
    for beta in betas:
        if beta != math.inf:
            number("betas", beta, above=0.0)
    if not betas or len(set(betas)) != len(betas):
        raise ValueError(f"betas: expected at least one and each once, got {list(betas)}")
    reach = round(REACH / SPACING)
    inputs = torch.tensor([round(i * SPACING, 6) for i in range(-reach, reach + 1)], dtype=torch.float64)
    return PSwishCurves(tuple(inputs.tolist()), tuple(_curve(float(beta), inputs) for beta in betas), _fade(config, total_steps))


def _curve(beta: float, inputs: torch.Tensor) -> Curve:
    x = inputs.clone().requires_grad_()
    y = torch.relu(x) if math.isinf(beta) else pswish(x, beta)
    (slopes,) = torch.autograd.grad(y.sum(), x)
    return Curve(beta, tuple(y.tolist()), tuple(slopes.tolist()))


def _fade(config: Config, total_steps: int) -> Fade:
    recipe, total = config.recipe, config.steps or integer("total_steps", total_steps, least=1)
    drop = config.first_drop
    window = fade_window(recipe, total, None if drop is None else round(drop * total))
    steps = sorted({round(i * total / (MOMENTS - 1)) for i in range(MOMENTS)} | set(window))
    strengths = [strength_at(recipe, step, *window) for step in steps]
    has_beta = recipe.ghost_swish and recipe.swish == "swish"
    over = math.inf if recipe.permanent else window[1]
    return Fade(
        recipe,
        total,
        window,
        tuple(steps),
        tuple(strength.alpha for strength in strengths) if recipe.ghost_skip else (),
        tuple(strength.beta if step < over else math.inf for step, strength in zip(steps, strengths, strict=True))
        if has_beta
        else (),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value
