"""Ghosts: skips and a swish that help a sparse network through the first part of its training, then go.

    net = add_ghosts(net, recipe)                                   # rewire
    set_strength(net, *strength_at(recipe, step, start, end))       # every step
    net = finalize(net)                                             # the plain network again

Jaiswal et al., "Training Your Sparse Neural Network Better with Any Mask", ICML 2022.
"""

from tost.ghosts.add import add_ghosts, check_ghosts
from tost.ghosts.branch import GHOST_WEIGHT, Ghost, GhostSwish
from tost.ghosts.finalize import finalize, recalibrate_bn
from tost.ghosts.schedule import Strength, alpha_at, beta_at, fade_window, strength_at
from tost.ghosts.strength import as_finalized, ghost_parameters, ghosts_of, set_strength

__all__ = [
    "GHOST_WEIGHT",
    "Ghost",
    "GhostSwish",
    "Strength",
    "add_ghosts",
    "alpha_at",
    "as_finalized",
    "beta_at",
    "check_ghosts",
    "fade_window",
    "finalize",
    "ghost_parameters",
    "ghosts_of",
    "recalibrate_bn",
    "set_strength",
    "strength_at",
]
