"""The grammar of variants: one for Python, YAML files and ablations."""

from collections.abc import Mapping
from typing import Any

import pytest

from tost import Recipe
from tost.ablations import ABLATIONS, ablation
from tost.config import recipe_of
from tost.variants import changes_of

GHOSTLESS = {"ghost_skip": False, "ghost_swish": False, "rescale_init": False}


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        (None, {}),
        ("vanilla", {"recipe": "vanilla"}),
        ("tost", {"recipe": "tost"}),
        ("snip", {"method": "snip"}),
        ("lth", {"method": "lth"}),
        (Recipe.vanilla(), {"recipe": "vanilla"}),
        (Recipe(fade_end=0.2), {"recipe": {"fade_end": 0.2}}),
        ({}, {}),
        ({"recipe": "vanilla"}, {"recipe": "vanilla"}),
        ({"recipe": {}}, {"recipe": "tost"}),
        ({"recipe": Recipe.vanilla(), "method": "random"}, {"recipe": "vanilla", "method": "random"}),
        # settings alone: the others as in ToST; beside `recipe`: as there
        ({"rescale_iterations": 30}, {"recipe": {"rescale_iterations": 30}}),
        (
            {"recipe": "vanilla", "ghost_skip": True},
            {"recipe": {"ghost_swish": False, "rescale_init": False, "label_smoothing": 0.0}},
        ),
        ({"recipe": {"fade_end": 0.2}, "ghost_swish": False}, {"recipe": {"fade_end": 0.2, "ghost_swish": False}}),
        ({**GHOSTLESS, "label_smoothing": 0.0}, {"recipe": "vanilla"}),
        ({"backend": "dense", "lr": 0.05}, {"backend": "dense", "lr": 0.05}),
        ({"rewind": "1ep"}, {"rewind": "1ep"}),
        ("splitlbi", {"method": "splitlbi"}),
        (
            {"method": "slimming", "density": "splitlbi", "at": 5, "search": {"epochs": 9}, "start": "found", "budget": "flops"},
            {"method": "slimming", "density": "splitlbi", "at": 5, "search": {"epochs": 9}, "start": "found", "budget": "flops"},
        ),
    ],
)
def test_what_a_variant_may_say(variant: Any, changes: Mapping[str, Any]) -> None:
    assert changes_of("a", variant) == changes
    assert changes_of("a", changes) == changes  # a record says it so that it can be given again


@pytest.mark.parametrize(
    ("variant", "error", "message"),
    [
        ("vanila", ValueError, "variants: a: recipe or method: unknown name 'vanila'; did you mean vanilla"),
        (3, TypeError, "variants: a: expected the name of a recipe or of a method, or a mapping, got 3"),
        ({"methd": "snip"}, ValueError, "variants: a: field: unknown name 'methd'; did you mean method"),
        ({"seed": 3}, ValueError, "variants: a: seed: expected the same for all variants, got 3"),
        ({"recipe": 3}, TypeError, "variants: a: recipe: expected a Recipe, 'tost', 'vanilla' or a mapping, got 3"),
        ({"label_smoothing": 2}, ValueError, "variants: a: Recipe.label_smoothing: expected"),
    ],
)
def test_what_it_may_not(variant: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        changes_of("a", variant)


def test_each_tweak_is_alone_once_and_left_out_once() -> None:
    def tweaks(variant: Any) -> set[str]:
        values = recipe_of(changes_of("a", variant)["recipe"]).as_dict()
        return {name for name in ("ghost_skip", "ghost_swish", "rescale_init", "label_smoothing") if values[name]}

    alone = [tweaks(variant) for name, variant in ABLATIONS["tweaks"].variants.items()]
    assert [len(on) for on in alone] == [0, 1, 1, 1, 1, 4]
    assert set().union(*alone[1:5]) == alone[5]
    but_one = [tweaks(variant) for name, variant in ABLATIONS["but-one"].variants.items()]
    assert [len(on) for on in but_one] == [0, 4, 3, 3, 3, 3]
    assert [alone[5] - on for on in but_one[2:]] == alone[1:5]


def test_the_other_ablations_differ_in_what_they_ask() -> None:
    def recipes(name: str) -> dict[str, Recipe]:
        return {key: recipe_of(changes_of(key, one)["recipe"]) for key, one in ABLATIONS[name].variants.items()}

    assert [recipe.fade_end for recipe in recipes("fade").values()] == [None, 0.1, 0.2, 0.3, 0.4, 0.5]
    ghosts = recipes("ghosts")
    assert ghosts["permanent ghosts"].permanent
    assert not ghosts["temporary ghosts"].permanent
    smoothing = recipes("smoothing")
    assert (smoothing["label smoothing"].label_smoothing, smoothing["distillation"].distillation) == (0.1, 0.9)
    assert not smoothing["distillation"].has_ghosts
    with pytest.raises(ValueError, match="ablation: unknown name 'fades'; did you mean fade"):
        ablation("fades")
    for chosen in ABLATIONS.values():
        assert set(chosen.baselines) <= set(chosen.variants)
