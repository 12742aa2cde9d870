import dataclasses
import json
import math

import pytest

from tost.recipe import Recipe, recipe_name


def test_presets() -> None:
    vanilla, tost = Recipe.vanilla(), Recipe.tost()
    assert (vanilla.ghost_skip, vanilla.ghost_swish, vanilla.rescale_init, vanilla.label_smoothing) == (
        False, False, False, 0.0,
    )  # fmt: skip
    assert not vanilla.has_ghosts
    assert (tost.ghost_skip, tost.ghost_swish, tost.rescale_init, tost.label_smoothing) == (True, True, True, 0.1)
    assert tost.has_ghosts
    assert (tost.alpha_start, tost.beta_start, tost.beta_end, tost.fade_end, tost.permanent) == (
        1.0, 1.0, 10.0, None, False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["ghost_skip", "ghost_swish", "rescale_init"])
def test_each_tweak_alone(name: str) -> None:
    alone = dataclasses.replace(Recipe.vanilla(), **{name: True})
    assert [f for f in ("ghost_skip", "ghost_swish", "rescale_init") if getattr(alone, f)] == [name]
    assert alone.has_ghosts == (name != "rescale_init")
    assert alone.label_smoothing == 0.0


def test_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().ghost_skip = False  # type: ignore[misc]
    assert hash(Recipe(alpha_start=1)) == hash(Recipe())


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe.vanilla(), Recipe(fade_start=0.1, fade_end=0.4, permanent=True, swish="mish")]
)
def test_dict_round_trip_through_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_numbers_are_normalised() -> None:
    # 1 and 1.0 must not give two hashes of the same configuration
    assert json.dumps(Recipe(alpha_start=1, beta_end=10).as_dict()) == json.dumps(Recipe().as_dict())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ghost_skip", 1), ("ghost_swish", "yes"), ("rescale_init", None), ("permanent", 0.0), ("swish", None),
        ("label_smoothing", "0.1"), ("label_smoothing", True), ("fade_start", None), ("fade_end", "end"),
        ("alpha_start", [1.0]), ("rescale_iterations", 1.0), ("rescale_iterations", True), ("beta_end", None),
    ],
)  # fmt: skip
def test_wrong_type_names_the_field(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"Recipe\.{field}: expected .* got {type(value).__name__}"):
        Recipe(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_smoothing", 1.0), ("label_smoothing", -0.1), ("label_smoothing", math.nan),
        ("fade_start", -0.1), ("fade_start", 1.1), ("fade_end", 1.1),
        ("alpha_start", 0.0), ("alpha_start", math.inf), ("beta_start", 0.0), ("beta_start", 10.0), ("beta_end", -1.0),
        ("rescale_iterations", 0), ("rescale_eta", 0.0), ("rescale_gamma", -1.0), ("rescale_lr", 0.0), ("rescale_clip", 0.0),
    ],
)  # fmt: skip
def test_out_of_range_names_the_field(field: str, value: float) -> None:
    named = "beta_end" if (field, value) == ("beta_start", 10.0) else field
    with pytest.raises(ValueError, match=rf"Recipe\.{named}: expected"):
        Recipe(**{field: value})  # type: ignore[arg-type]


def test_fade_must_not_end_before_it_starts() -> None:
    with pytest.raises(ValueError, match=r"Recipe\.fade_end: expected at least fade_start = 0.5, got 0.4"):
        Recipe(fade_start=0.5, fade_end=0.4)


def test_a_permanent_swish_need_not_sharpen() -> None:
    assert Recipe(permanent=True, beta_start=1.0, beta_end=1.0).permanent


def test_mish_has_nothing_to_fade() -> None:
    assert Recipe(swish="mish", permanent=True, ghost_skip=False).has_ghosts
    for fields in ({}, {"permanent": True, "ghost_swish": False}):
        with pytest.raises(
            ValueError, match=r"Recipe\.swish: expected 'swish', or 'mish' with permanent=True and ghost_swish=True"
        ):
            Recipe(swish="mish", **fields)
    with pytest.raises(ValueError, match=r"Recipe\.swish: unknown name 'misch'; did you mean mish"):
        Recipe(swish="misch")


def test_unknown_field_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'gost_skip'.*ghost_skip"):
        Recipe.from_dict({"gost_skip": True})
    with pytest.raises(TypeError, match="fields: expected a mapping, got list"):
        Recipe.from_dict([])  # type: ignore[arg-type]


def test_recipes_have_telling_names() -> None:
    assert recipe_name(Recipe.vanilla()) == "vanilla"
    assert recipe_name(Recipe.tost()) == "tost"
    assert recipe_name(Recipe(ghost_skip=False, label_smoothing=0)) == "ghost_swish+rescale_init"
    assert recipe_name(Recipe(rescale_iterations=60, label_smoothing=0.2)) == "tost label_smoothing=0.2 rescale_iterations=60"
    assert recipe_name(Recipe(rescale_gamma=0)) != recipe_name(Recipe.tost())
    assert recipe_name(dataclasses.replace(Recipe.vanilla(), rescale_init=True)) == "rescale_init"
