"""Comparisons of variants that keep different numbers of weights: which pictures there are, and what is in them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.tost.report.made_runs import pair, result
from tost import Recipe
from tost.accounting import Accounting
from tost.grid import Cell, Diverged, Grid
from tost.report import pictures_of, sheets_of, structure_figures

SEARCH = {"epochs": 9, "split_lbi": {"nu": 20, "lam": 0.1}}
# name -> what is different, densities and accuracies of two seeds
VARIANTS: dict[str, tuple[dict[str, Any], tuple[float, float], tuple[float, float]]] = {
    "from 8": ({"method": "splitlbi", "start": "found", "at": 8, "search": SEARCH}, (0.5, 0.6), (0.9, 0.92)),
    "from 2": ({"method": "splitlbi", "start": "found", "at": 2, "search": SEARCH}, (0.1, 0.1), (0.6, 0.7)),
    "new": ({"method": "splitlbi", "at": 2}, (0.1, 0.1), (0.5, 0.5)),
    "random": ({"method": "random"}, (0.1, 0.1), (0.4, 0.4)),
    "few": ({"method": "force"}, (0.001, 0.001), (0.2, 0.2)),
    "dense": ({"backend": "dense"}, (1.0, 1.0), (0.95, 0.97)),
}


def grid(*names: str) -> Grid:
    def run(name: str, seed: int) -> Any:
        _, densities, accuracies = VARIANTS[name]
        counts = Accounting(round(1000 * densities[seed]), 1000, densities[seed], 0, 1100)
        return dataclasses.replace(result(accuracies[seed], Recipe.vanilla(), seed), accounting=counts)

    cell = Cell("lenet5", "mnist5k", "", 0.05)
    runs = {cell: {name: (run(name, 0), run(name, 1)) for name in names}}
    return Grid(runs[cell][names[0]][0].config, (cell,), {name: VARIANTS[name][0] for name in names}, (names[0],), (0, 1), runs)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(structure_figures, "save", lambda figure, path: figures.append(figure))
    return figures


def test_pictures_where_they_say_something() -> None:
    assert list(pictures_of(grid(*VARIANTS))) == ["", "forest", "densities", "epochs"]
    assert list(pictures_of(grid("from 8", "random"))) == ["", "forest", "densities"]
    assert list(pictures_of(grid("new", "random"))) == ["", "forest"]
    assert list(pictures_of(grid("random", "dense"))) == ["", "forest"]
    assert list(pictures_of(pair())) == ["", "forest"]


def test_accuracy_against_density(drawn: list[Figure]) -> None:
    pictures_of(grid(*VARIANTS))["densities"](Path("p.png"))
    (axes,) = drawn[0].axes
    points = {bars.get_label(): (bars.lines[0].get_xdata()[0], bars.lines[0].get_ydata()[0]) for bars in axes.containers}  # type: ignore[attr-defined, index]
    assert points["from 8"] == pytest.approx((55, 91))
    assert points["random"] == pytest.approx((10, 40))
    assert "dense" not in points
    assert [line.get_ydata() for line in axes.lines if line.get_label() == "dense"] == [pytest.approx([96, 96])]
    assert axes.get_xscale() == "log"
    pictures_of(grid("random", "from 8"))["densities"](Path("p.png"))
    assert drawn[1].axes[0].get_xscale() == "linear"


def test_tables_of_masks_that_are_not_of_one_density() -> None:
    (sheet,) = sheets_of(grid("from 8", "from 2", "dense"))
    assert [str(row[3]) for row in sheet.rows] == ["550 of 1,000", "100 of 1,000", "1,000 of 1,000"]
    assert "Weights kept: mean over the seeds." in sheet.note
    assert "lenet5 on mnist5k, 45 to 90% sparse, " in sheet.title
    (sheet,) = sheets_of(grid("new", "random", "dense"))
    assert "Weights kept" not in sheet.note
    assert "lenet5 on mnist5k, 95% sparse, " in sheet.title


def test_what_tells_searches_apart_is_in_the_legend(drawn: list[Figure]) -> None:
    found = grid("from 8", "from 2", "new", "random")
    more = {"method": "splitlbi", "start": "found", "search": {**SEARCH, "split_lbi": {"nu": 50, "lam": 0.1}}}
    variants = {**found.variants, "new": {**more, "at": 2}, "random": {**more, "at": 8}}
    pictures_of(dataclasses.replace(found, variants=variants))["epochs"](Path("p.png"))
    labels = [bars.get_label() for bars in drawn[0].axes[0].containers]
    assert labels == [f"method splitlbi, search split_lbi nu {nu}, start found" for nu in (20, 50)]
    (legend,) = drawn[0].legends
    assert all(len(line) <= 30 for text in legend.get_texts() for line in text.get_text().splitlines())


def test_accuracy_against_the_epoch_of_the_masks(drawn: list[Figure]) -> None:
    found = grid(*VARIANTS)
    pictures_of(found)["epochs"](Path("p.png"))
    accuracy, kept = drawn[0].axes
    for axes, expected in ((accuracy, [65, 91]), (kept, [10, 55])):
        (bars,) = axes.containers
        assert bars.get_label() == "method splitlbi, start found"
        assert list(bars.lines[0].get_xdata()) == [2, 8]  # type: ignore[attr-defined]
        assert list(bars.lines[0].get_ydata()) == pytest.approx(expected)  # type: ignore[attr-defined]
        labels = {line.get_label() for line in axes.lines}
        assert {"new", "random", "dense"} <= labels

    (cell,) = found.cells
    lost = {**found.results[cell], "from 2": (Diverged("nan"), Diverged("nan"))}
    pictures_of(dataclasses.replace(found, results={cell: lost}))["epochs"](Path("p.png"))
    assert list(drawn[1].axes[0].containers[0].lines[0].get_xdata()) == [8]  # type: ignore[attr-defined]
