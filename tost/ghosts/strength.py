"""Moving the ghosts of a network: their strength, their parameters, and a look at the plain form in between."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from torch import nn

from tost.ghosts.branch import Ghost, GhostSwish, fill
from tost.ghosts.wire import Rewired, check_attributes

__all__ = ["as_finalized", "ghost_parameters", "ghosts_of", "set_strength"]


def ghosts_of(net: nn.Module) -> dict[str, Ghost | GhostSwish]:
    """Name -> module for everything `add_ghosts` put into `net`; empty for a plain network."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Ghost | GhostSwish)}


def set_strength(net: nn.Module, alpha: float, beta: float) -> None:
    """Sets the gate of all ghost skips and the sharpness of all ghost swishes. Does nothing to a network without any.

    At alpha = 0 the ghost convolutions are not run and their BatchNorms not updated. From the recipe's `beta_end` on (or
    at infinity) the activation is exact ReLU; with a permanent recipe only infinity means ReLU.

    Raises:
        ValueError: alpha is no finite number >= 0, or beta is no number > 0; or a number, bool, string or None that forward read
            from a module when the ghosts were added is another one now, which the network with ghosts would not see.
    """
    if not (math.isfinite(alpha) and alpha >= 0.0):
        raise ValueError(f"set_strength: alpha: expected a finite number >= 0, got {alpha}")
    if not beta > 0.0:
        raise ValueError(f"set_strength: beta: expected a number > 0, got {beta}")
    modules = list(net.modules())
    for module in modules:
        if isinstance(module, Rewired):
            check_attributes(module)
    ghosts = [module for module in modules if isinstance(module, Ghost | GhostSwish)]
    fill(pair for ghost in ghosts for pair in ghost.strengths(alpha, beta))
    for ghost in ghosts:
        ghost.set_flags(alpha, beta)


def ghost_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of the ghost convolutions and of their BatchNorms; `finalize` removes them unless they are permanent.

    Take those of a temporary ghost out of the optimizer once alpha is 0, else weight decay goes on moving them in optimizers
    that act without a gradient.
    """
    found: dict[nn.Parameter, None] = {}
    for ghost in ghosts_of(net).values():
        found.update(dict.fromkeys(ghost.parameters()))
    return list(found)


@contextlib.contextmanager
def as_finalized(net: nn.Module) -> Iterator[nn.Module]:
    """Inside the `with`, `net` computes what `finalize(net)` would (no ghost skips, exact ReLU); after it, as before.

    For validation during the fade: nothing is copied. Permanent ghosts stay.
    """
    before = [(ghost, ghost.strength()) for ghost in ghosts_of(net).values() if not ghost.recipe.permanent]
    try:
        for ghost, _ in before:
            ghost.set_strength(0.0, math.inf)
        yield net
    finally:
        for ghost, (alpha, beta) in before:
            ghost.set_strength(alpha, beta)
