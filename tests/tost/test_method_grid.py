"""A grid of masks, densities and seeds: who runs, what is shared, what is reported."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tost import Config, Masks, Recipe, parallel, tickets, training
from tost.data import Dataset
from tost.method_grid import train_grid
from tost.runs import Result, RunFolder

VARIANTS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "force, T = 2": {"method": "force", "method_steps": 2},
    "LTH": {"rewind": "init"},
    "dense": {"backend": "dense"},
}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> Config:
    for module in (training, tickets):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images)
    return Config(model="mlp", recipe=Recipe.vanilla(), steps=2, batch_size=16, out=str(tmp_path / "runs"))


def test_every_cell_is_one_run_a_seed(base: Config) -> None:
    lines: list[str] = []
    grid = train_grid(base, VARIANTS, (0.8, 0.7), (3, 4), report=lines.append)
    for density in (0.8, 0.7):
        runs = grid.results[density]
        assert list(runs) == list(VARIANTS)
        for name in ("random", "force, T = 2", "LTH"):
            assert [run.config.seed for run in runs[name]] == [3, 4]
            kept = {run.accounting.weights_kept for run in runs[name]}
            assert kept == {round(density * runs[name][0].accounting.weights_prunable)}
        assert runs["force, T = 2"][0].config.method_steps == 2
    assert grid.results[0.8]["dense"] == grid.results[0.7]["dense"]
    # 2 dense, 4 of each method, a lottery a seed with both densities in a line
    assert len(lines) == 2 + 8 + 2
    assert lines[-1].startswith("LTH, seed 4: 80% kept: ")

    # one round for 80%, shared by the lottery to 70%, and one more
    rounds = sorted(path.name for path in next(Path(base.out).glob("lottery-*")).iterdir())
    assert [name[:8] for name in rounds] == ["round-00", "round-01", "round-02"]

    again = train_grid(base, VARIANTS, (0.8, 0.7), (3, 4), report=lines.append)
    assert again.as_dict() == grid.as_dict()
    assert sum("finished earlier" in line for line in lines) == 10


def test_shared_rounds_are_repeated_once(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"LTH": {"rewind": 1}}
    first = train_grid(base, variants, (0.8, 0.6), (3,))
    rounds = {path.parent: path.stat().st_mtime_ns for path in Path(base.out).glob("lottery-*/*/result.json")}
    began: list[Path] = []
    start = RunFolder.start

    def spy(folder: RunFolder, config: Config, masks: Masks | None) -> None:
        began.append(folder.path)
        start(folder, config, masks)

    monkeypatch.setattr(RunFolder, "start", spy)
    again = train_grid(base, variants, (0.8, 0.6), (3,), overwrite=True)
    assert sorted(began) == sorted(rounds)
    for density in (0.8, 0.6):
        assert again.accuracies(density, "LTH") == first.accuracies(density, "LTH")


@pytest.mark.parametrize("wrong", [{"rewind": "5000it"}, {"rewind": "soon"}, {"rewind": "init", "backend": "dense"}])
def test_a_wrong_lottery_is_found_before_anything_is_trained(base: Config, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"variants: LTH: (rewind|backend): expected"):
        train_grid(base, {"random": {"method": "random"}, "LTH": wrong}, (0.8,), (3,))
    assert not Path(base.out).exists()


def test_two_at_a_time_equal_one_after_the_other(tmp_path: Path) -> None:
    """In processes of their own, on the real images."""
    base = Config(model="mlp", recipe=Recipe.vanilla(), steps=2, batch_size=16, out=str(tmp_path / "runs"))
    variants = {"LTH": {"rewind": "init"}}
    together = train_grid(base, variants, (0.8,), (0, 1), jobs=2, progress=True)
    alone = train_grid(dataclasses.replace(base, out=str(tmp_path / "alone")), variants, (0.8,), (0, 1))
    for one, other in zip(together.results[0.8]["LTH"], alone.results[0.8]["LTH"], strict=True):
        assert (one.test_loss, one.masks_fingerprint) == (other.test_loss, other.masks_fingerprint)


def test_record_has_no_paths(base: Config) -> None:
    grid = train_grid(base, {"random": {"method": "random"}}, (0.5,), (0,))
    values = json.loads(json.dumps(grid.as_dict()))
    assert base.out not in json.dumps(values)
    (cell,) = values["densities"]
    run = cell["variants"]["random"]["runs"][0]
    assert run["test_accuracy"] == grid.accuracies(0.5, "random")[0]
    assert values["config"]["model"] == "mlp"
    assert "method" not in values["config"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "variants: expected at least one"),
        ({"densities": ()}, "densities: expected at least one"),
        ({"densities": (0.5, 0.5)}, "densities: .* each once"),
        ({"seeds": (1, 1)}, "seeds: .* each once"),
        ({"variants": {"a": {"method": "snip"}, "b": {"method": "snip"}}}, "the same under the names 'a' and 'b'"),
        ({"variants": {"a": {"method": "snap"}}}, "variants: a: method: unknown name 'snap'"),
        ({"variants": {"a": {"methd": "snip"}}}, "variants: a: config: unknown name 'methd'"),
    ],
)
def test_wrong_arguments(base: Config, changes: dict[str, Any], message: str) -> None:
    arguments = {"variants": {"random": {"method": "random"}}, "densities": (0.5,), "seeds": (0,), **changes}
    with pytest.raises(ValueError, match=message):
        train_grid(base, **arguments)


def test_runs_that_cannot_be_compared_are_an_error(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.train

    def other_batches(config: Config, **options: bool) -> Result:
        return dataclasses.replace(real(config, **options), batches_fingerprint=config.method)

    monkeypatch.setattr(parallel, "train", other_batches)
    with pytest.raises(RuntimeError, match="the runs of seed 0 cannot be compared: batches_fingerprint differs"):
        train_grid(base, {"a": {"method": "random"}, "b": {"method": "magnitude"}}, (0.5,), (0,))
