"""Tables and pictures from made-up runs."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tost.accounting import Accounting
from tost.config import Config
from tost.old_experiment import Comparison
from tost.paired import paired
from tost.recipe import Recipe
from tost.report import (
    Difference,
    Sheet,
    accuracy_sheet,
    comparisons_of,
    recipe_name,
    require_matplotlib,
    save_figure,
    step_time_sheet,
)
from tost.runs import Result
from tost.step_times import StepTime

TIMES = (
    StepTime("dense", "dense", False, "channels_last", 80.0, 79.0, 82.0, 20),
    StepTime("sparse", "cpu", False, "batch_last", 20.0, 19.0, 21.0, 20),
    StepTime("sparse", "dense", True, "contiguous", 160.0, 159.0, 161.0, 20),
)


def result(accuracy: float, recipe: Recipe, seed: int = 0, **changes: Any) -> Result:
    return Result(
        config=Config(recipe=recipe, seed=seed, **changes),
        run_dir=Path("runs/x"),
        test_accuracy=accuracy,
        test_loss=1.0,
        best=None,
        history=(
            {"epoch": 1, "step": 10, "test_accuracy": accuracy / 2},
            {"epoch": 2, "step": 20},
            {"epoch": 3, "step": 30, "test_accuracy": accuracy},
        ),
        accounting=Accounting(13530, 270608, 0.05, 0, 15108),
        ghost_weights_at_start=29696 if recipe.ghost_skip else 0,
        masks_fingerprint="m",
        weights_fingerprint="w",
        batches_fingerprint="b",
        seconds=12.0,
        ms_per_step=2.5,
        ms_per_step_with_ghosts=None,
        images_per_second=100.0,
        kernels="cpu",
        device="cpu",
        processes=1,
        threads=1,
        torch="2.13",
    )


def comparison(times: tuple[StepTime, ...] = ()) -> Comparison:
    vanilla = (result(0.90, Recipe.vanilla(), 0), result(0.92, Recipe.vanilla(), 1))
    ghosts = (result(0.91, Recipe.tost(), 0), result(0.91, Recipe.tost(), 1))
    return Comparison({"vanilla": vanilla, "tost": ghosts}, (0, 1), times)


def test_accuracy_sheet_says_it_as_it_is() -> None:
    sheet = accuracy_sheet(comparison())
    assert sheet.title == "resnet20 on mnist5k, erk mask, 95% sparse, 30 steps, 2 seeds, compiled sparse kernels"
    assert sheet.cells[0] == ("vanilla", "91.00 ± 1.41", "baseline", "13,530 of 270,608", "0 -> 0", "12")
    assert sheet.cells[1][:2] == ("tost", "91.00 ± 0.00")
    assert sheet.cells[1][2].startswith("+0.00 [-12.71, +12.71], 1 of 2 won")
    assert sheet.cells[1][4] == "29,696 -> 0"


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
    assert accuracy_sheet(Comparison({"vanilla": (run,)}, (0,))).title.endswith(f", {said}")


def test_one_run_has_no_spread() -> None:
    alone = Comparison({"vanilla": (result(0.9, Recipe.vanilla()),)}, (0,))
    assert accuracy_sheet(alone).cells[0][1] == "90.00"


def test_losses_are_shown() -> None:
    assert str(Difference(paired([0.9], [0.88]))) == "-2.00, 0 of 1 won: undecided"


def test_step_times_compare_with_dense() -> None:
    sheet = step_time_sheet(TIMES, threads=2)
    assert sheet.title == "Duration of a training step, 2 threads"
    assert sheet.cells == (
        ("dense", "80.0", "79.0 - 82.0", "1.00x", "channels_last"),
        ("sparse", "20.0", "19.0 - 21.0", "4.00x", "batch_last"),
        ("sparse, no compiled kernel, ghosts alive", "160.0", "159.0 - 161.0", "0.50x", "contiguous"),
    )


def test_markdown_and_terminal_have_the_same_cells() -> None:
    sheet = step_time_sheet(TIMES)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(sheet.rich())
    console.file.close()
    terminal, markdown = console.export_text(), sheet.markdown()
    for cell in [*sheet.header, *(cell for row in sheet.cells for cell in row)]:
        assert cell in terminal
        assert cell in markdown
    assert markdown.splitlines()[3] == "| :-- | --: | --: | --: | --: |"


def test_bars_in_cells_do_not_break_a_markdown_table() -> None:
    lines = Sheet("t", ("a | b", "c", "d"), (("x | y", "1", "z"),), texts=("d",)).markdown().splitlines()
    assert lines[2:5] == [r"| a \| b | c | d |", "| :-- | --: | :-- |", r"| x \| y | 1 | z |"]


def test_picture_is_saved(tmp_path: Path) -> None:
    save_figure(comparison(TIMES), tmp_path / "new" / "a.png")
    save_figure(comparison(), tmp_path / "b.png")
    for path in (tmp_path / "new" / "a.png", tmp_path / "b.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.sys.modules, "matplotlib", None)  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tost-sparse\[plot\]'"):
        require_matplotlib()


def test_recipes_have_telling_names() -> None:
    assert recipe_name(Recipe.vanilla()) == "vanilla"
    assert recipe_name(Recipe.tost()) == "tost"
    assert recipe_name(Recipe(ghost_skip=False, label_smoothing=0)) == "ghost_swish+rescale_init"
    assert recipe_name(Recipe(rescale_iterations=60, label_smoothing=0.2)) == "tost label_smoothing=0.2 rescale_iterations=60"
    assert recipe_name(Recipe(rescale_gamma=0)) != recipe_name(Recipe.tost())
    assert recipe_name(dataclasses.replace(Recipe.vanilla(), rescale_init=True)) == "rescale_init"


def test_runs_are_grouped_by_all_but_recipe_and_seed() -> None:
    runs = [result(0.9, r, s) for r in (Recipe.tost(), Recipe.vanilla()) for s in (0, 1, 2)]
    runs.append(result(0.8, Recipe.tost(), 0, density=0.02))
    runs.append(result(0.7, Recipe(ghost_skip=False), 1))
    big, small = comparisons_of(runs)
    # only seed 1 was run by all three recipes
    assert list(big.results) == ["vanilla", "ghost_swish+rescale_init+label_smoothing", "tost"]
    assert big.seeds == (1,)
    assert (small.baseline, small.seeds) == ("tost", (0,))
    assert small.results["tost"][0].config.density == 0.02


def test_what_has_no_effect_makes_no_group() -> None:
    runs = [
        result(0.9, Recipe.vanilla(), 0, masks="a.npz"),
        result(0.9, Recipe.tost(), 0, masks="a.npz", method="snip", density=0.3),
    ]
    (together,) = comparisons_of(runs)
    assert list(together.results) == ["vanilla", "tost"]


def test_recipes_without_a_common_seed_are_apart() -> None:
    groups = comparisons_of([result(0.9, Recipe.vanilla(), 0), result(0.9, Recipe.tost(), 5)])
    assert [(g.baseline, g.seeds) for g in groups] == [("vanilla", (0,)), ("tost", (5,))]
