"""How strong the ghosts are at a step of the training: pure functions, no state.

No paper gives these schedules. The defaults are ours: alpha falls linearly to 0, beta grows geometrically (so that the
distance 0.2785 / beta to ReLU shrinks by the same factor every step), and both end together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tost.recipe import Recipe

__all__ = ["Strength", "alpha_at", "beta_at", "fade_window", "strength_at"]


class Strength(NamedTuple):
    """Gate of the ghost skips and sharpness of the ghost swish at one step."""

    alpha: float
    beta: float


def alpha_at(step: float, start: float, end: float, alpha_start: float) -> float:
    """Linear fade of the gate: exactly `alpha_start` up to step `start`, exactly 0.0 from step `end` on."""
    _check_window("alpha_at", step, start, end)
    _check_positive("alpha_at", "alpha_start", alpha_start)
    if step >= end:
        return 0.0
    if step <= start:
        return float(alpha_start)
    return float(alpha_start * ((end - step) / (end - start)))


def beta_at(step: float, start: float, end: float, beta_start: float, beta_end: float) -> float:
    """Geometric growth of the sharpness: exactly `beta_start` up to `start`, exactly `beta_end` from `end` on.

    `set_strength` takes `beta_end` as "the fade is over" and switches to exact ReLU there.
    """
    _check_window("beta_at", step, start, end)
    _check_positive("beta_at", "beta_start", beta_start)
    _check_positive("beta_at", "beta_end", beta_end)
    if step >= end:
        return float(beta_end)
    if step <= start:
        return float(beta_start)
    done = (step - start) / (end - start)
    return float(beta_start * (beta_end / beta_start) ** done)


def strength_at(recipe: Recipe, step: float, start: float, end: float) -> Strength:
    """Both strengths of `recipe` at `step`; with `recipe.permanent` they never move."""
    if recipe.permanent:
        _check_window("strength_at", step, start, end)
        return Strength(recipe.alpha_start, recipe.beta_start)
    return Strength(
        alpha_at(step, start, end, recipe.alpha_start),
        beta_at(step, start, end, recipe.beta_start, recipe.beta_end),
    )


def fade_window(recipe: Recipe, total_steps: int, first_drop: int | None = None) -> tuple[int, int]:
    """First step of the fade, and the first step after it.

    Args:
        recipe: `fade_start` and `fade_end` are fractions of the training.
        total_steps: optimizer steps of the whole training, at least 1.
        first_drop: step of the first drop of the learning rate; the end of the fade where `recipe.fade_end` is None.
            None: the learning rate never drops and the fade takes the whole training.

    Raises:
        ValueError: the fade would start after its end.
    """
    if total_steps < 1:
        raise ValueError(f"fade_window: total_steps: expected at least 1, got {total_steps}")
    start = round(recipe.fade_start * total_steps)
    if recipe.fade_end is not None:
        end = round(recipe.fade_end * total_steps)
    else:
        end = total_steps if first_drop is None else first_drop
    if not 0 <= start <= end:
        raise ValueError(
            f"fade_window: the fade starts at step {start} (fade_start = {recipe.fade_start} of {total_steps} steps) "
            f"but ends at step {end}; lower fade_start or give fade_end"
        )
    return start, end


def _check_window(where: str, step: float, start: float, end: float) -> None:
    for name, value in (("step", step), ("start", start), ("end", end)):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {name}: expected a finite number, got {value}")
    if start > end:
        raise ValueError(f"{where}: end: expected at least start = {start}, got {end}")


def _check_positive(where: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{where}: {name}: expected a finite number > 0, got {value}")
