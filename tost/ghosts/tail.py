"""The strength of a fused tail: filling `alpha` and `beta`, and what they mean for the Python side.

`tost_kernels.nn.GhostSkipAdd` keeps alpha and beta as 0-dim tensors, so a fade neither recompiles nor re-captures
anything. Two facts must be known without reading a tensor, though: whether the ghost convolutions have to run at all, and
whether the activation is swish or exact ReLU. Both change once in a training.
"""

from __future__ import annotations

import math

import torch

from tost.recipe import Recipe
from tost_kernels.nn import GhostSkipAdd

__all__ = ["fill", "is_relu", "new_tail", "read", "rounded"]


def new_tail(recipe: Recipe, device: torch.device | None) -> GhostSkipAdd:
    """A tail at the recipe's first strength. Without ghost skips its gate is 0, without ghost swish it is ReLU."""
    tail = GhostSkipAdd(
        act="pswish" if recipe.ghost_swish else "relu",
        alpha=recipe.alpha_start if recipe.ghost_skip else 0.0,
        beta=recipe.beta_start,
    )
    return tail.to(device)


def rounded(value: float) -> float:
    """`value` in float32: what the tensor holds, so that flags set from floats and from a checkpoint agree."""
    return float(torch.tensor(value, dtype=torch.float32).item())


def is_relu(recipe: Recipe, beta: float) -> bool:
    """Whether sharpness `beta` stands for exact ReLU under `recipe`."""
    if not recipe.ghost_swish or math.isinf(beta):
        return True
    return not recipe.permanent and rounded(beta) >= rounded(recipe.beta_end)


@torch.no_grad()
def fill(tail: GhostSkipAdd, recipe: Recipe, alpha: float, beta: float) -> None:
    """Writes the strength into the tail's tensors and sets its activation."""
    tail.alpha.fill_(alpha if recipe.ghost_skip else 0.0)
    tail.beta.fill_(beta)
    tail.act = "relu" if is_relu(recipe, beta) else "pswish"


def read(tail: GhostSkipAdd) -> tuple[float, float]:
    """alpha and beta as the tensors have them; waits for the device."""
    return float(tail.alpha.item()), float(tail.beta.item())
