import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tost.ghosts import Strength, alpha_at, beta_at, fade_window, strength_at
from tost.recipe import Recipe


@pytest.mark.parametrize(
    ("step", "alpha"), [(0, 1.0), (9, 1.0), (10, 1.0), (11, 0.75), (12, 0.5), (13, 0.25), (14, 0.0), (15, 0.0), (10**9, 0.0)]
)
def test_alpha_table(step: int, alpha: float) -> None:
    assert alpha_at(step, 10, 14, 1.0) == alpha
    assert alpha_at(step, 10, 14, 0.5) == alpha / 2


@pytest.mark.parametrize(
    ("step", "beta"), [(0, 1.0), (10, 1.0), (11, 2.0), (12, 4.0), (13, 8.0), (14, 16.0), (15, 16.0), (10**9, 16.0)]
)
def test_beta_table(step: int, beta: float) -> None:
    assert beta_at(step, 10, 14, 1.0, 16.0) == beta
    assert beta_at(step, 10, 14, 0.5, 8.0) == beta / 2


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.floats(0.01, 10.0), st.floats(0.01, 10.0), st.floats(1.01, 100.0))
def test_ends_are_exact_and_between_is_monotone(
    start: int, length: int, alpha_start: float, beta_start: float, factor: float
) -> None:
    end, beta_end = start + length, beta_start * factor
    assert alpha_at(start, start, end, alpha_start) == alpha_start
    assert beta_at(start, start, end, beta_start, beta_end) == beta_start
    assert alpha_at(end, start, end, alpha_start) == 0.0
    assert beta_at(end, start, end, beta_start, beta_end) == beta_end
    steps = sorted({start, start + 1, start + length // 3, start + length // 2, end - 1, end})
    alphas = [alpha_at(step, start, end, alpha_start) for step in steps]
    betas = [beta_at(step, start, end, beta_start, beta_end) for step in steps]
    assert alphas == sorted(alphas, reverse=True)
    assert alphas[-2] > 0.0
    assert all(later >= earlier * (1 - 1e-12) for earlier, later in itertools.pairwise(betas))


def test_a_fade_of_no_length_is_over_at_once() -> None:
    assert alpha_at(0, 0, 0, 1.0) == 0.0
    assert beta_at(0, 0, 0, 1.0, 10.0) == 10.0
    assert alpha_at(4, 5, 5, 1.0) == 1.0


def test_strength_of_a_recipe() -> None:
    recipe = Recipe(alpha_start=0.8, beta_start=2.0, beta_end=8.0)
    assert strength_at(recipe, 0, 0, 2) == Strength(0.8, 2.0)
    assert strength_at(recipe, 1, 0, 2) == Strength(0.4, 4.0)
    assert strength_at(recipe, 2, 0, 2) == Strength(0.0, 8.0)
    permanent = Recipe(permanent=True, alpha_start=0.8, beta_start=2.0)
    assert strength_at(permanent, 10**6, 0, 2) == Strength(0.8, 2.0)


@pytest.mark.parametrize(
    ("recipe", "first_drop", "window"),
    [
        (Recipe(), 500, (0, 500)),
        (Recipe(), None, (0, 1000)),
        (Recipe(fade_start=0.1), 500, (100, 500)),
        (Recipe(fade_start=0.1, fade_end=0.25), 500, (100, 250)),
        (Recipe(fade_end=0.0), 500, (0, 0)),
    ],
)
def test_window(recipe: Recipe, first_drop: int | None, window: tuple[int, int]) -> None:
    assert fade_window(recipe, 1000, first_drop) == window


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"fade starts at step 600 .* ends at step 500"):
        fade_window(Recipe(fade_start=0.6), 1000, 500)
    with pytest.raises(ValueError, match="total_steps: expected at least 1, got 0"):
        fade_window(Recipe(), 0)
    with pytest.raises(ValueError, match="alpha_at: end: expected at least start = 5, got 4"):
        alpha_at(0, 5, 4, 1.0)
    with pytest.raises(ValueError, match="alpha_at: alpha_start: expected"):
        alpha_at(0, 0, 4, 0.0)
    with pytest.raises(ValueError, match="beta_at: beta_end: expected"):
        beta_at(0, 0, 4, 1.0, math.inf)
    with pytest.raises(ValueError, match="beta_at: step: expected a finite number, got nan"):
        beta_at(math.nan, 0, 4, 1.0, 10.0)
