"""Recovery, layers and the number of steps: what is counted is what `prune` does."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from tost.analysis import Setting, analyze_iterations, analyze_layers, analyze_recovery
from tost.environment import environment


def test_recovery_counts_add_up(setting: Setting) -> None:
    found = analyze_recovery(setting, ("force", "iter_snip"))
    total = setting.masks(setting.of("force", 0)).total
    for name in ("force", "iter_snip"):
        for seed in setting.seeds:
            steps = [step for step in found.steps if (step.method, step.seed) == (name, seed)]
            assert [step.number for step in steps] == [1, 2, 3]
            kept = total
            for step in steps:
                kept += step.recovered - step.pruned
                assert step.kept == kept
            assert kept == round(setting.config.density * total)
    assert all(step.recovered == 0 for step in found.steps if step.method == "iter_snip")
    assert any(step.recovered for step in found.steps if step.method == "force")
    assert len(json.loads(json.dumps(found.as_dict()))["steps"]) == 12


def test_layers_are_those_of_the_masks(setting: Setting) -> None:
    found = analyze_layers(setting, ("random", "snip"))
    assert found.counts["snip"][1] == setting.masks(setting.of("snip", 1)).per_layer()
    seeds = found.counts["snip"]
    assert found.mean_kept("snip") == [(a.kept + b.kept) / 2 for a, b in zip(*seeds, strict=True)]
    record = json.loads(json.dumps(found.as_dict()))
    assert record["layers"]["random"][0][0]["total"] == found.counts["random"][0][0].total
    assert "out" not in record


def test_a_method_of_one_step_keeps_it(setting: Setting) -> None:
    assert setting.of("snip", 0).method_steps is None
    assert setting.of("force", 0).method_steps == 3


def test_iterations_train_what_they_measure(setting: Setting) -> None:
    lines: list[str] = []
    found = analyze_iterations(setting, ("force",), (1, 3), batches=1, report=lines.append)
    assert [(p.steps, p.seed) for p in found.points] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert all(0 <= p.test_accuracy <= 1 and p.saliency > 0 and p.seconds > 0 for p in found.points)
    assert len(lines) == 4
    again = analyze_iterations(setting, ("force",), (1, 3), batches=1, report=lines.append)
    assert all("finished earlier" in line for line in lines[4:])
    for one, other in zip(found.points, again.points, strict=True):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(other, seconds=0)
    assert json.loads(json.dumps(found.as_dict()))["training_steps"] == 2
    assert environment()["threads"] >= 1
    assert all(math.isfinite(p.saliency) for p in found.points)


@pytest.mark.parametrize(
    ("iterations", "message"),
    [((), "iterations: expected at least one"), ((2, 2), "each once"), ((0,), "iterations: expected .* at least 1, got 0")],
)
def test_wrong_iterations(setting: Setting, iterations: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze_iterations(setting, ("force",), iterations)


def test_iterations_are_for_methods_that_take_several(setting: Setting) -> None:
    with pytest.raises(ValueError, match=r"^method_steps: expected none for 'snip', which takes one step"):
        analyze_iterations(setting, ("force", "snip"), (1, 3), batches=1)
    assert not Path(setting.config.out).exists()
