"""Comparisons as tables and pictures."""

import csv
import dataclasses
import importlib
import io
from pathlib import Path

import pytest

from tests.tost.report.made_runs import TIMES, pair, result
from tests.tost.small_grid import small_grid
from tost.grid import Cell, Grid
from tost.recipe import Recipe
from tost.report import csv_tables, grid_sheets, grids_of, pictures_of, require_matplotlib
from tost.report.grids import cell_labels, grid_title


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """ToST wins the first cell, the second lacks a pair."""
    accuracies = {
        "vanilla": [(0.50, 0.52, 0.51), (0.40, 0.40, 0.40)],
        "tost": [(0.60, 0.64, 0.62), (0.30, None, 0.50)],
        "other": [(0.41, 0.42, 0.41), (0.40, 0.40, 0.40)],
    }
    return dataclasses.replace(small_grid(tmp_path, accuracies), step_times=())


def png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_sheet_says_it_as_it_is() -> None:
    (sheet,) = grid_sheets(pair())
    assert sheet.title == "resnet20 on mnist5k, erk mask, 95% sparse, 30 steps, 2 seeds, compiled sparse kernels"
    assert sheet.header[2] == "paired difference to vanilla"
    assert sheet.cells[0] == ("vanilla", "91.00 ± 1.41", "", "13,530 of 270,608", "0 -> 0", "12")
    assert sheet.cells[1][:2] == ("tost", "91.00 ± 0.00")
    assert sheet.cells[1][2] == "+0.00 [-12.71, +12.71], 1/2, undecided"
    assert sheet.cells[1][4] == "29,696 -> 0"


def test_networks_of_yours_with_the_same_name_stay_apart() -> None:
    models = ("a/net.py:net", "b/net.py:net", "resnet20", "resnet32")
    grids = grids_of([result(0.9, Recipe.vanilla(), model=model) for model in models])
    assert [len(Grid.from_dict(grid.as_dict()).cells) for grid in grids] == [1, 1, 2]


def test_ghosts_and_divergence_have_columns_where_there_are_some(grid: Grid) -> None:
    alone = grids_of([result(0.9, Recipe.vanilla())])[0]
    (sheet,) = grid_sheets(alone)
    assert sheet.cells == (("vanilla", "90.00", "13,530 of 270,608", "12"),)  # alone, it has no difference
    assert "Difference" not in sheet.note
    first, second, _ = grid_sheets(grid)
    assert [row[first.header.index("diverged")] for row in second.cells] == ["0", "1", "0"]
    assert "Diverged: runs whose loss" in second.note
    assert first.note == ""  # said once


@pytest.mark.parametrize(
    ("backend", "kernels", "said"),
    [
        ("sparse", "dense", "no compiled kernel"),
        ("sparse", "tuned (triton, dense)", "kernels tuned (triton, dense)"),
        ("reference", "reference", "reference kernels"),
        ("masked-dense", "dense", "dense kernels"),
    ],
)
def test_the_title_says_what_computed(backend: str, kernels: str, said: str) -> None:
    run = dataclasses.replace(result(0.9, Recipe.vanilla(), backend=backend), kernels=kernels)
    assert grid_sheets(grids_of([run])[0])[0].title.endswith(f", {said}")


def test_cells_are_counted_and_pooled(grid: Grid) -> None:
    summary = grid_sheets(grid)[-1]
    assert summary.title == "Cells won and lost: resnet20 on mnist5k, erk mask, 2 sparsities, 3 steps, 3 seeds"
    # the mean over the cells of each seed but the one that lacks a pair
    assert summary.cells[0][:6] == ("tost", "vanilla", "all", "1", "0", "1")
    assert summary.cells[0][6].startswith("+5.25 [")
    assert summary.cells[0][7] == "1"
    assert summary.cells[1][:6] == ("other", "vanilla", "all", "0", "1", "1")


def test_networks_and_data_sets_are_also_pooled_apart(grid: Grid) -> None:
    first, second = grid.cells
    cells = {first: first, second: dataclasses.replace(second, dataset="cifar10")}
    two = dataclasses.replace(
        grid, cells=tuple(cells.values()), results={cells[cell]: runs for cell, runs in grid.results.items()}
    )
    summary = grid_sheets(two)[-1]
    assert [row[2] for row in summary.cells[:3]] == ["all", "resnet20 on mnist5k", "resnet20 on cifar10"]
    assert summary.cells[1][3:6] == ("1", "0", "0")


def test_csv_names_the_cell_of_every_row(grid: Grid) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_tables(grid_sheets(grid))[""])))
    assert len(rows) == 6
    assert [rows[4][name] for name in ("model", "data set", "mask", "density", "variant")] == [
        "resnet20",
        "mnist5k",
        "erk",
        "0.02",
        "tost",
    ]
    assert [rows[1][f"paired difference to vanilla {name}"] for name in ("mean", "wins", "n", "verdict")] == [
        "11",
        "3",
        "3",
        "won",
    ]
    assert float(rows[4]["test accuracy % mean"]) == pytest.approx(40.0)


def test_labels_leave_out_what_cells_have_in_common(grid: Grid) -> None:
    assert list(cell_labels(grid).values()) == ["95% sparse", "98% sparse"]
    first = grid.cells[0]
    one = dataclasses.replace(grid, cells=(first,), results={first: grid.results[first]})
    assert list(cell_labels(one).values()) == [first.title]
    assert grid_title(one) == f"{first.title}, 3 steps, 3 seeds"


def test_a_grid_has_the_pictures_that_say_something(grid: Grid) -> None:
    assert list(pictures_of(grid)) == ["", "sparsity"]  # a forest first
    assert list(pictures_of(pair())) == ["", "forest"]  # curves first
    assert list(pictures_of(grids_of([result(0.9, Recipe.vanilla())])[0])) == ["", "forest"][:1]


def test_pictures_are_drawn(grid: Grid, tmp_path: Path) -> None:
    several = dataclasses.replace(grid, baselines=("vanilla", "other"))
    timed = dataclasses.replace(pair(), step_times=TIMES)
    for number, one in enumerate((grid, several, timed)):
        for name, draw in pictures_of(one).items():
            path = tmp_path / "new" / f"{number}{name}.png"
            draw(path)
            assert png(path)


def test_a_forest_shows_its_differences(grid: Grid, tmp_path: Path) -> None:
    pictures_of(dataclasses.replace(grid, seeds=(0, 1, 2)))[""](tmp_path / "f.svg")
    # text is drawn as shapes in an SVG, but each string is kept as a comment beside them
    drawn = (tmp_path / "f.svg").read_text()
    for said in ("tost", "other", "95% sparse", "all 2 cells", "variant minus vanilla", "points", "95% t-interval over pairs"):
        assert said in drawn


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.sys.modules, "matplotlib", None)  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tost-sparse\[plot\]'"):
        require_matplotlib()


def test_runs_are_grouped_by_all_but_recipe_and_seed() -> None:
    runs = [result(0.9, r, s) for r in (Recipe.tost(), Recipe.vanilla()) for s in (0, 1, 2)]
    runs.append(result(0.8, Recipe.tost(), 0, density=0.02))
    runs.append(result(0.7, Recipe(ghost_skip=False), 1))
    big, small = grids_of(runs)
    # only seed 1 was run by all three recipes
    assert list(big.variants) == ["vanilla", "ghost_swish+rescale_init+label_smoothing", "tost"]
    assert (big.baselines, big.seeds) == (("vanilla",), (1,))
    assert (small.baselines, small.seeds) == (("tost",), (0,))
    assert small.cells == (Cell("resnet20", "mnist5k", "erk", 0.02),)


def test_cells_with_the_same_recipes_and_seeds_make_a_grid() -> None:
    runs = [
        result(0.9, recipe, seed, density=density, method=method, epochs=epochs)
        for recipe in (Recipe.vanilla(), Recipe.tost())
        for seed in (0, 1)
        for density, method, epochs in ((0.05, "erk", 30), (0.02, "erk", 30), (0.05, "random", 30), (0.05, "erk", 5))
    ]
    grids = grids_of(runs)
    assert sorted(len(grid.cells) for grid in grids) == [1, 3]
    big = max(grids, key=lambda grid: len(grid.cells))
    assert {(cell.method, cell.density) for cell in big.cells} == {("erk", 0.05), ("erk", 0.02), ("random", 0.05)}
    assert Grid.from_dict(big.as_dict()).as_dict() == big.as_dict()


def test_what_has_no_effect_makes_no_group() -> None:
    runs = [
        result(0.9, Recipe.vanilla(), 0, masks="a.npz"),
        result(0.9, Recipe.tost(), 0, masks="a.npz", method="snip", density=0.3),
    ]
    (together,) = grids_of(runs)
    assert list(together.variants) == ["vanilla", "tost"]
    assert together.cells[0].title == "resnet20 on mnist5k, a.npz mask, 95% sparse"


def test_masks_and_teachers_of_each_seed_are_the_same_in_kind(tmp_path: Path) -> None:
    """As `tost compare` leaves them: of every seed a lottery and a dense network of its own."""
    runs = []
    for seed in (0, 1):
        ticket = tmp_path / f"lottery-{seed}a" / "round-05-13530"
        teacher = tmp_path / f"dense{seed}"
        for folder in (ticket, teacher):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(f'{{"seed": {seed}, "recipe": "vanilla"}}')
        distilled = dataclasses.replace(Recipe.vanilla(), distillation=0.9)
        for recipe in (Recipe.vanilla(), distilled):
            runs.append(result(0.9, recipe, seed, masks=str(ticket), teacher=str(teacher)))
    (grid,) = grids_of(runs)
    assert grid.seeds == (0, 1)
    assert grid.cells[0].method == "lth"


def test_recipes_without_a_common_seed_are_apart() -> None:
    groups = grids_of([result(0.9, Recipe.vanilla(), 0), result(0.9, Recipe.tost(), 5)])
    assert [(g.baselines, g.seeds) for g in groups] == [(("vanilla",), (0,)), (("tost",), (5,))]
