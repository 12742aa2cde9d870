"""The record of a comparison: differences, verdicts, what a diverged run leaves out, and reading it back."""

import json
from pathlib import Path

import pytest

from tests.tost.small_grid import small_grid
from tost.files import DamagedFile
from tost.grid import Cell, Diverged, Grid, Verdicts


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """ToST wins the first cell (+10, +12, +11 points), the second lacks a pair."""
    return small_grid(
        tmp_path,
        {
            "vanilla": [(0.50, 0.52, 0.51), (0.40, 0.40, 0.40)],
            "tost": [(0.60, 0.64, 0.62), (0.30, None, 0.50)],
            "other": [(0.41, 0.42, 0.41), (0.40, 0.40, 0.40)],
        },
    )


def test_differences_of_a_cell(grid: Grid) -> None:
    first, second = grid.cells
    assert grid.accuracies(first, "tost") == [0.60, 0.64, 0.62]
    won = grid.against(first, "tost", "vanilla")
    assert won.differences == pytest.approx((0.10, 0.12, 0.11))
    assert (won.verdict, won.left_out) == ("won", 0)
    assert grid.against(first, "other", "vanilla").verdict == "lost"

    assert grid.accuracies(second, "tost") == [0.30, 0.50]
    assert (grid.diverged(second, "tost"), grid.diverged(second, "vanilla")) == (1, 0)
    rest = grid.against(second, "tost", "vanilla")
    assert rest.differences == pytest.approx((-0.10, 0.10))
    assert (rest.verdict, rest.left_out) == ("undecided", 1)


def test_pooled_has_one_difference_a_seed(grid: Grid) -> None:
    pooled = grid.pooled("tost", "vanilla")
    # of seeds 0 and 2; seed 1 has no pair in the second cell
    assert pooled.differences == pytest.approx(((0.10 - 0.10) / 2, (0.11 + 0.10) / 2))
    assert pooled.left_out == 1
    assert grid.pooled("tost", "vanilla", grid.cells[:1]) == grid.against(grid.cells[0], "tost", "vanilla")


def test_a_tie_over_the_cells_is_no_win(tmp_path: Path) -> None:
    """The same counts in another order, whose means differ in the last bit."""
    grid = small_grid(tmp_path, {"vanilla": [(0.464,) * 2, (0.684,) * 2], "tost": [(0.423,) * 2, (0.725,) * 2]})
    pooled = grid.pooled("tost", "vanilla")
    assert (pooled.mean, pooled.wins, pooled.losses, pooled.verdict) == (0.0, 0, 0, "undecided")


def test_cells_are_counted(grid: Grid) -> None:
    assert grid.count("tost", "vanilla") == Verdicts(won=1, lost=0, undecided=1)
    assert grid.count("other", "vanilla") == Verdicts(won=0, lost=1, undecided=1)


def test_record_is_read_back_and_names_no_place(grid: Grid, tmp_path: Path) -> None:
    grid.save(tmp_path / "new" / "c.json")
    again = Grid.load(tmp_path / "new" / "c.json")
    assert again.as_dict() == grid.as_dict()
    assert str(tmp_path) not in (tmp_path / "new" / "c.json").read_text()
    assert again.cells == grid.cells
    assert again.results[again.cells[1]]["tost"][1] == Diverged("the loss became nan at step 2 of 3")
    assert again.pooled("tost", "vanilla") == grid.pooled("tost", "vanilla")
    assert again.step_times == grid.step_times
    run = grid.runs(grid.cells[0], "tost")[2]
    back = again.runs(again.cells[0], "tost")[2]
    assert (back.config.recipe, back.config.seed, back.config.density) == (run.config.recipe, 2, 0.05)
    assert back.run_dir == run.run_dir.relative_to(tmp_path)


def test_readers_of_the_record_find_means_and_verdicts(grid: Grid) -> None:
    values = json.loads(json.dumps(grid.as_dict()))
    of_tost = values["cells"][1]["variants"]["tost"]
    assert of_tost["accuracy_mean"] == pytest.approx(0.40)
    assert of_tost["diverged"] == 1
    assert of_tost["against"]["vanilla"]["verdict"] == "undecided"
    assert values["cells"][0]["variants"]["vanilla"]["against"] == {}
    assert [entry["variant"] for entry in values["against"]] == ["tost", "other"]
    assert values["against"][0]["cells"] == {"won": 1, "lost": 0, "undecided": 1}


def test_a_variant_that_always_diverged_has_no_mean(tmp_path: Path) -> None:
    grid = small_grid(tmp_path, {"vanilla": [(0.5,), (0.5,)], "tost": [(None,), (0.4,)]})
    against = grid.against(grid.cells[0], "tost", "vanilla")
    assert (against.mean, against.verdict, against.left_out) == (None, "undecided", 1)
    assert Grid.from_dict(grid.as_dict()).as_dict() == grid.as_dict()


def test_titles_are_for_humans() -> None:
    assert Cell("resnet20", "mnist5k", "erk", 0.05).title == "resnet20 on mnist5k, erk mask, 95% sparse"
    assert Cell("/my/net.py:make", "cifar10", "", 0.005).title == "net.py:make on cifar10, 99.5% sparse"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("kind",), "curvature", "kind: expected 'comparison', got 'curvature'"),
        (("baselines",), ["none"], "baselines: unknown name 'none'"),
        (("seeds",), [0], "runs: expected one a seed"),
        (("cells", 0, "variants", "tost", "runs", 0, "test_accuracy"), "high", "test_accuracy: expected"),
        (("cells", 0, "density"), "x", "density: expected"),
        (("cells", 1, "density"), 0.05, "cells: expected each once, got resnet20 on mnist5k, erk mask, 95% sparse again"),
    ],
)
def test_a_damaged_record_is_told(grid: Grid, tmp_path: Path, place: tuple[str | int, ...], value: object, message: str) -> None:
    values = json.loads(json.dumps(grid.as_dict()))
    inner = values
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DamagedFile, match=f"not a comparison's record: {message}"):
        Grid.load(path)
