"""What is different about a variant of a comparison: the one grammar of `tost.compare`, its YAML files and its ablations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tost.checks import integer
from tost.choices import check_choice
from tost.config import RECIPES, Config, recipe_of
from tost.masks import methods
from tost.recipe import Recipe

__all__ = [
    "LOTTERY",
    "SEARCHES",
    "SLIMMING",
    "SPLITLBI",
    "TRAINED_MAGNITUDE",
    "Variant",
    "changes_of",
    "fields_of",
    "named",
    "search_options",
]

LOTTERY = "lth"  # a method that is a lottery: iterative magnitude pruning, rewound to the initial weights
SPLITLBI, SLIMMING, TRAINED_MAGNITUDE = "splitlbi", "slimming", "trained-magnitude"
SEARCHES = (SPLITLBI, SLIMMING, "soft-filter", TRAINED_MAGNITUDE)  # methods that are a training, see tost/searches.py
Variant = str | Recipe | Mapping[str, Any] | None

_RECIPE = tuple(f.name for f in dataclasses.fields(Recipe))
_CONFIG = tuple(f.name for f in dataclasses.fields(Config))
# what the runs of a comparison share: with others they were no pair, or not one run of one folder
_SHARED = (
    "model", "dataset", "data_dir", "validation", "cutout", "epochs", "steps", "batch_size", "seed", "out", "cuda_graph",
)  # fmt: skip
# what a variant says beside fields of `Config` and settings of `Recipe`
_OWN = ("rewind", "search", "at", "rates", "start", "budget")
# fields of `Config` in which the training of a search may differ from the runs: those that say how, not what is trained
_SEARCHED = (
    "cutout", "epochs", "steps", "batch_size", "accumulate", "optimizer", "split_lbi", "bn_l1", "lr", "momentum", "nesterov",
    "betas", "weight_decay", "schedule", "milestones", "drop_every", "gamma", "warmup_steps", "clip_norm", "amp", "ema",
    "max_skipped", "eval_every",
)  # fmt: skip


def changes_of(name: str, variant: Variant) -> dict[str, Any]:
    """What a variant changes, plain JSON types; errors name the variant.

    Args:
        name: of the variant.
        variant: "vanilla" or "tost"; the name of a pruning method; a Recipe; None: nothing is different; or a mapping of fields
            of `Config`, settings of `Recipe` (the others as in "recipe", or as in ToST) and what `tost.compare` says of lotteries
            and searches: "rewind", "search", "at", "rates", "start", "budget"; "density" may be a search.

    Raises:
        TypeError, ValueError: it is none of these, or changes what all runs of a comparison share.
    """
    with named(name):
        if variant is None:
            return {}
        if isinstance(variant, Recipe):
            return {"recipe": _spelled(variant)}
        if isinstance(variant, str):
            kind = "recipe" if variant in RECIPES else "method"
            check_choice("recipe or method", variant, (*RECIPES, *methods(), LOTTERY, *SEARCHES))
            return {kind: variant}
        if not isinstance(variant, Mapping):
            raise TypeError(f"expected the name of a recipe or of a method, or a mapping, got {variant!r}")
        changes: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        for field, value in variant.items():
            check_choice("field", field, (*_CONFIG, *_RECIPE, *_OWN))
            if field in _SHARED:
                raise ValueError(f"{field}: expected the same for all variants, got {value!r}")
            (settings if field in _RECIPE else changes)[field] = _checked(field, value)
        if settings or "recipe" in changes:
            others = recipe_of(changes.get("recipe", "tost"))
            changes["recipe"] = _spelled(Recipe.from_dict({**others.as_dict(), **settings}))
        return changes


def fields_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of a variant's changes those that are fields of `Config`."""
    return {name: value for name, value in changes.items() if name not in _OWN and not (name == "density" and value in SEARCHES)}


def search_options(options: object) -> dict[str, Any]:
    """`options` of the training of a search, if they are fields of `Config` that it may have of its own.

    Raises:
        TypeError, ValueError: they are something else.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"search: expected a mapping of fields of the configuration, got {options!r}")
    return {check_choice("search", name, _SEARCHED): value for name, value in options.items()}


def _checked(field: str, value: Any) -> Any:
    """`value`, if it is one that only lotteries and searches know; fields of others are checked where they go."""
    if field == "search":
        return search_options(value)
    if field == "at":
        return integer(field, value, least=1)
    if field == "rates" or (field == "density" and isinstance(value, str)):
        return check_choice(field, value, SEARCHES)
    if field in ("start", "budget"):
        return check_choice(field, value, ("found",) if field == "start" else ("flops",))
    return value


@contextmanager
def named(variant: str) -> Iterator[None]:
    """Errors inside say which variant is wrong."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"variants: {variant}: {error}") from None


def _spelled(recipe: Recipe) -> str | dict[str, Any]:
    """As a variant says it: "vanilla", "tost", or the settings that are not as in the latter."""
    if recipe == Recipe.vanilla():
        return "vanilla"
    default = Recipe.tost().as_dict()
    return {name: value for name, value in recipe.as_dict().items() if value != default[name]} or "tost"
