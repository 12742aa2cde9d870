"""Sets of variants by name: most take ToST apart, each in another way.

A variant that says only "recipe" and settings of it runs with the masks, weights and batches of all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tost.choices import check_choice

__all__ = ["ABLATIONS", "Ablation", "ablation"]


class Ablation(NamedTuple):
    """What `tost.compare` takes.

    variants: name -> what is different. baselines: those that the others are compared with. about: the question, for humans.
    """

    variants: Mapping[str, Any]
    baselines: tuple[str, ...]
    about: str


_TWEAKS: Mapping[str, Mapping[str, Any]] = {
    "ghost skip": {"ghost_skip": True},
    "ghost swish": {"ghost_swish": True},
    "re-scaled init": {"rescale_init": True},
    "label smoothing": {"label_smoothing": 0.1},
}
_OFF = {"ghost_skip": False, "ghost_swish": False, "rescale_init": False, "label_smoothing": 0.0}
_GHOSTS = {"recipe": "vanilla", "ghost_skip": True, "ghost_swish": True}

ABLATIONS: Mapping[str, Ablation] = {
    "tweaks": Ablation(
        {
            "vanilla": "vanilla",
            **{name: {"recipe": "vanilla", **settings} for name, settings in _TWEAKS.items()},
            "tost": "tost",
        },
        ("vanilla",),
        "each tweak alone, and all",
    ),
    "but-one": Ablation(
        {
            "vanilla": "vanilla",
            "tost": "tost",
            **{f"without {name}": {field: _OFF[field] for field in settings} for name, settings in _TWEAKS.items()},
        },
        ("vanilla", "tost"),
        "all tweaks but one",
    ),
    "ghosts": Ablation(
        {"vanilla": "vanilla", "temporary ghosts": _GHOSTS, "permanent ghosts": {**_GHOSTS, "permanent": True}},
        ("vanilla", "permanent ghosts"),
        "ghosts that fade against ghosts that stay",
    ),
    "smoothing": Ablation(
        {
            "vanilla": "vanilla",
            "label smoothing": {"recipe": "vanilla", "label_smoothing": 0.1},
            "distillation": {"recipe": "vanilla", "distillation": 0.9, "teacher": "dense"},
        },
        ("vanilla", "label smoothing"),
        "label smoothing against distillation from the dense network",
    ),
    "fade": Ablation(
        {"vanilla": "vanilla", **{f"fade until {end:g}": {"fade_end": end} for end in (0.1, 0.2, 0.3, 0.4, 0.5)}},
        ("vanilla",),
        "how long the ghosts of ToST live, as a fraction of the training",
    ),
    "structures": Ablation(
        {
            "SplitLBI (Lottery)": "splitlbi",
            "SGD (Lottery)": {"method": "trained-magnitude", "rates": "splitlbi"},
            "Scratch-E": {"method": "splitlbi", "mask_check": "reinitialised"},
            "Scratch-B": {"method": "splitlbi", "mask_check": "reinitialised", "budget": "flops"},
            "Network Slimming": "slimming",
            "Soft Filter Pruning": "soft-filter",
        },
        ("SplitLBI (Lottery)",),
        "masks that SplitLBI finds while it trains, against those of other trainings",
    ),
}


def ablation(name: str) -> Ablation:
    """The variants and baselines of a set.

    Raises:
        ValueError: there is none of this name; close matches are named.
    """
    return ABLATIONS[check_choice("ablation", name, ABLATIONS)]
