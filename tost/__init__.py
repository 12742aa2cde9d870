"""Train a sparse network better (ToST) and faster (sparse-weight kernels), with any mask.

The names below are imported on first use (PEP 562), so `import tost` costs next to nothing::

    masks = tost.prune(model, "synflow", density=0.05, input_shape=(3, 32, 32))
    result = tost.train(tost.Config(model="resnet20", method="synflow", density=0.05))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tost import (
        analysis,
        callbacks,
        checkpoint,
        data,
        distributed,
        experiment,
        ghosts,
        init,
        losses,
        masks,
        models,
        optim,
        report,
        shrinking,
    )
    from tost.accounting import Accounting, account
    from tost.config import Config
    from tost.experiment import compare
    from tost.ghosts import add_ghosts, finalize
    from tost.grid import Grid
    from tost.init import rescale_init
    from tost.macs import Macs, count_macs
    from tost.masks import Masks, PruneStep, methods, prune, score
    from tost.recipe import Recipe
    from tost.shrinking import Shrunk, load_shrunk, shrink
    from tost.tickets import Lottery, lottery
    from tost.training import Result, train

# public name -> the module that defines it
_EXPORTS = {
    "Accounting": "tost.accounting",
    "Config": "tost.config",
    "Grid": "tost.grid",
    "Lottery": "tost.tickets",
    "Macs": "tost.macs",
    "Masks": "tost.masks",
    "PruneStep": "tost.masks",
    "Recipe": "tost.recipe",
    "Result": "tost.training",
    "Shrunk": "tost.shrinking",
    "account": "tost.accounting",
    "add_ghosts": "tost.ghosts",
    "compare": "tost.experiment",
    "count_macs": "tost.macs",
    "finalize": "tost.ghosts",
    "load_shrunk": "tost.shrinking",
    "lottery": "tost.tickets",
    "methods": "tost.masks",
    "prune": "tost.masks",
    "rescale_init": "tost.init",
    "score": "tost.masks",
    "shrink": "tost.shrinking",
    "train": "tost.training",
}
_SUBMODULES = {
    "analysis",
    "callbacks",
    "checkpoint",
    "data",
    "distributed",
    "experiment",
    "ghosts",
    "init",
    "losses",
    "masks",
    "models",
    "optim",
    "report",
    "shrinking",
}

__version__ = "0.1.0"

__all__ = [
    "Accounting",
    "Config",
    "Grid",
    "Lottery",
    "Macs",
    "Masks",
    "PruneStep",
    "Recipe",
    "Result",
    "Shrunk",
    "account",
    "add_ghosts",
    "analysis",
    "callbacks",
    "checkpoint",
    "compare",
    "count_macs",
    "data",
    "distributed",
    "experiment",
    "finalize",
    "ghosts",
    "init",
    "load_shrunk",
    "losses",
    "lottery",
    "masks",
    "methods",
    "models",
    "optim",
    "prune",
    "report",
    "rescale_init",
    "score",
    "shrink",
    "shrinking",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"tost.{name}")
    else:
        raise AttributeError(f"module 'tost' has no attribute {name!r}")
    globals()[name] = value  # the next access is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
