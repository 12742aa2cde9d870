"""Paired comparison: who runs, what is shared, what is reported."""

import dataclasses
import json
from pathlib import Path

import pytest

import tost
from tost import Config, Recipe, old_experiment, parallel, step_times, training
from tost.data import Dataset
from tost.models.resnet import ResNet
from tost.old_experiment import Comparison, compare

VARIANTS = {"vanilla": Recipe.vanilla(), "ghosts": Recipe(rescale_init=False)}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> Config:
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(old_experiment, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", lambda *args: ResNet((1, 1), (4, 8), args[1], args[2]))
    return Config(steps=3, batch_size=16, density=0.3, out=str(tmp_path))


def test_each_seed_is_a_pair(config: Config) -> None:
    lines: list[str] = []
    comparison = compare(config, VARIANTS, seeds=(4, 7), report=lines.append)
    assert comparison.baseline == "vanilla"
    assert [len(r) for r in comparison.results.values()] == [2, 2]
    for seed, vanilla, ghosts in zip((4, 7), *comparison.results.values(), strict=True):
        assert vanilla.config == dataclasses.replace(config, recipe=VARIANTS["vanilla"], seed=seed)
        assert ghosts.config == dataclasses.replace(config, recipe=VARIANTS["ghosts"], seed=seed)
        assert vanilla.masks_fingerprint == ghosts.masks_fingerprint
    assert len(lines) == 4
    assert lines[0].startswith("seed 4  vanilla: ")
    assert "finished earlier" not in lines[0]
    compare(config, VARIANTS, seeds=(4,), report=lines.append)
    assert "finished earlier" in lines[-1]


def test_runs_that_are_no_pair_are_an_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.train

    def other_batches(config: Config, **options: bool) -> tost.Result:
        result = real(config, **options)
        return dataclasses.replace(result, batches_fingerprint=str(config.recipe.ghost_skip))

    monkeypatch.setattr(parallel, "train", other_batches)
    with pytest.raises(RuntimeError, match="runs of seed 0 are no pair: batches_fingerprint differs"):
        compare(config, VARIANTS, seeds=(0,))


def test_step_times_cover_every_backend(config: Config) -> None:
    comparison = compare(config, VARIANTS, seeds=(0,), timing_rounds=2)
    times = comparison.step_times
    assert [(t.backend, t.ghosts) for t in times] == [
        (backend, ghosts) for ghosts in (False, True) for backend in ("dense", "masked-dense", "sparse")
    ]
    assert all(t.ms_low <= t.ms <= t.ms_high and t.ms > 0 and t.steps == 4 for t in times)
    assert {t.layout for t in times if t.backend != "sparse"} <= {"contiguous", "channels_last"}
    plain = step_times.measure_step_times(config, training.load("toy", None), Recipe.vanilla(), rounds=2)
    assert [t.ghosts for t in plain] == [False] * 3
    with pytest.raises(ValueError, match="rounds: expected at least 2"):
        step_times.measure_step_times(config, training.load("toy", None), Recipe.vanilla(), rounds=1)


def test_the_record_has_every_run(config: Config, tmp_path: Path) -> None:
    comparison = compare(config, VARIANTS, seeds=(0, 1))
    comparison.save(tmp_path / "new" / "c.json")
    values = json.loads((tmp_path / "new" / "c.json").read_text())
    assert values == json.loads(json.dumps(comparison.as_dict()))
    assert values["variants"]["vanilla"]["against_baseline"] is None
    differences = values["variants"]["ghosts"]["against_baseline"]["differences"]
    accuracies = {n: [r["test_accuracy"] for r in v["runs"]] for n, v in values["variants"].items()}
    assert differences == [g - v for v, g in zip(accuracies["vanilla"], accuracies["ghosts"], strict=True)]
    assert isinstance(comparison, Comparison)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": {}}, "variants: expected at least one"),
        ({"seeds": ()}, "seeds: expected at least one"),
        ({"seeds": (1, 1)}, r"seeds: expected .* each once, got \[1, 1\]"),
        ({"jobs": 0}, "jobs: expected a whole number of at least 1, got 0"),
        ({"variants": {"a": Recipe.vanilla(), "b": Recipe.vanilla()}}, "variants: expected different recipes"),
        ({"timing_rounds": 1}, "timing_rounds: expected 0 or at least 2, got 1"),
    ],
)
def test_wrong_arguments(config: Config, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(config, **options)  # type: ignore[arg-type]
