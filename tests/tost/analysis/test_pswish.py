"""The ghost swish against its formula, and the fade against what a training records."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.tost.analysis.short_runs import short_run, small_world
from tost import Config, Recipe
from tost.analysis import PSwishCurves, analyze_pswish
from tost.data import Dataset


def test_values_and_slopes_by_formula() -> None:
    found = analyze_pswish(Config(), (0.5, 1, 7, math.inf))
    assert (found.inputs[0], found.inputs[-1], len(found.inputs)) == (-6.0, 6.0, 601)
    for curve in found.curves[:3]:
        for x, value, slope in list(zip(found.inputs, curve.values, curve.slopes, strict=True))[::20]:
            s = 1 / (1 + math.exp(-curve.beta * x))
            assert value == pytest.approx(x * s, abs=1e-12)
            assert slope == pytest.approx(s + curve.beta * x * s * (1 - s), abs=1e-12)
    relu = found.curves[3]
    assert relu.values == tuple(max(x, 0.0) for x in found.inputs)
    assert relu.slopes == tuple(float(x > 0) for x in found.inputs)


def test_the_fade_is_that_of_a_training(tmp_path: Path, toy_images: Dataset) -> None:
    with small_world(toy_images):
        run = short_run(tmp_path, "tost", epochs=1)
    fade = analyze_pswish(run.config, (1,)).fade
    assert (fade.total, fade.window, fade.steps) == (12, (0, 6), tuple(range(13)))
    for line in run.history:
        step = line["step"] - (line["step"] < 12)  # strengths are moved before a step, and once more behind the last
        assert fade.alpha[step] == line["alpha"]
        assert fade.beta[step] == (math.inf if line["beta"] is None else line["beta"])


@pytest.mark.parametrize(
    ("recipe", "alpha", "beta"),
    [
        (Recipe(fade_start=0.25, fade_end=0.75), (1.0, 1.0, 0.5, 0.0, 0.0), (1.0, 1.0, math.sqrt(10), math.inf, math.inf)),
        (Recipe(ghost_swish=False, fade_end=1.0), (1.0, 0.75, 0.5, 0.25, 0.0), ()),
        (Recipe(ghost_skip=False, permanent=True, beta_start=3.0), (), (3.0,) * 5),
        (Recipe(permanent=True, swish="mish"), (1.0,) * 5, ()),
        (Recipe.vanilla(), (), ()),
    ],
)
def test_fades_of_recipes(recipe: Recipe, alpha: tuple[float, ...], beta: tuple[float, ...]) -> None:
    found = analyze_pswish(Config(recipe=recipe, steps=4), (1,))
    assert found.fade.steps == (0, 1, 2, 3, 4)
    assert found.fade.alpha == alpha
    assert found.fade.beta == pytest.approx(beta)
    assert PSwishCurves.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ((), "betas: expected at least one"),
        ((1, 1.0), "each once"),
        ((0,), "betas: expected a number > 0, got 0"),
        ((math.nan,), "betas: expected a number > 0, got nan"),
    ],
)
def test_wrong_betas(betas: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze_pswish(Config(), betas)
    with pytest.raises(ValueError, match="total_steps: expected a whole number of at least 1"):
        analyze_pswish(dataclasses.replace(Config(), steps=None), (1,), total_steps=0)
