"""What is different about a variant of a comparison: the one grammar of `tost.compare`, its YAML files and its ablations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tost.choices import check_choice
from tost.config import RECIPES, Config, recipe_of
from tost.masks import methods
from tost.recipe import Recipe

__all__ = ["LOTTERY", "Variant", "changes_of", "fields_of", "named"]

LOTTERY = "lth"  # a method that is a lottery: iterative magnitude pruning, rewound to the initial weights
Variant = str | Recipe | Mapping[str, Any] | None

_RECIPE = tuple(f.name for f in dataclasses.fields(Recipe))
_CONFIG = tuple(f.name for f in dataclasses.fields(Config))
# what the runs of a comparison share: with others they were no pair, or not one run of one folder
_SHARED = (
    "model", "dataset", "data_dir", "validation", "cutout", "epochs", "steps", "batch_size", "seed", "out", "cuda_graph",
)  # fmt: skip


def changes_of(name: str, variant: Variant) -> dict[str, Any]:
    """The fields of `Config` (and "rewind") that a variant changes, plain JSON types; errors name the variant.

    Args:
        name: of the variant.
        variant: "vanilla" or "tost"; the name of a pruning method; a Recipe; None: nothing is different; or a mapping of fields
            of `Config`, settings of `Recipe` (the others as in "recipe", or as in ToST) and "rewind".

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
            check_choice("recipe or method", variant, (*RECIPES, *methods(), LOTTERY))
            return {kind: variant}
        if not isinstance(variant, Mapping):
            raise TypeError(f"expected the name of a recipe or of a method, or a mapping, got {variant!r}")
        changes: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        for field, value in variant.items():
            check_choice("field", field, (*_CONFIG, *_RECIPE, "rewind"))
            if field in _SHARED:
                raise ValueError(f"{field}: expected the same for all variants, got {value!r}")
            (settings if field in _RECIPE else changes)[field] = value
        if settings or "recipe" in changes:
            others = recipe_of(changes.get("recipe", "tost"))
            changes["recipe"] = _spelled(Recipe.from_dict({**others.as_dict(), **settings}))
        return changes


def fields_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of a variant's changes those that are fields of `Config`."""
    return {name: value for name, value in changes.items() if name != "rewind"}


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
