"""Which weights a sparse network keeps: `Masks`, and the methods that choose them at initialisation.

A method is composed of four independent parts, one file each: a score per weight (`scores`), a distribution of the budget
over the layers (`distributions`), a schedule of densities (`schedules`), and the exact selection of the best (`selection`).
`methods` lists the compositions; `steps` runs one, `pruning.prune` is its public face.
"""

from __future__ import annotations

from tost.masks.comparison import MaskComparison, compare
from tost.masks.masks import LayerCount, Masks
from tost.masks.methods import Method, methods
from tost.masks.pruning import prune, score
from tost.masks.steps import PruneStep

__all__ = ["LayerCount", "MaskComparison", "Masks", "Method", "PruneStep", "compare", "methods", "prune", "score"]
