"""The paper's numbers beside ours, from made-up runs."""

import csv
from pathlib import Path

import pytest

from tests.tost.small_grid import small_grid
from tost.presets import PaperNumber, Preset, Stage
from tost.report import read_record, sheets_of, write_report
from tost.reproduction import Reproduction, reproduction


def made_up(folder: Path, budget: str) -> Reproduction:
    """A comparison that ran, with two cells (95 and 98% sparse), and one that did not."""
    grid = small_grid(folder, {"vanilla": [(0.50, 0.52), (0.40, None)], "tost": [(0.60, 0.64), (0.30, 0.5)]})
    grid.save(folder / "erk" / "comparison.json")
    stages = (Stage("erk", "compare", {}), Stage("curves", "analyze curvature", {}, ("erk",)))
    numbers = (
        PaperNumber("erk", "vanilla", 50.0, None, "erk", 0.05),
        PaperNumber("erk", "tost", 9.5, "vanilla", None, 0.05),
        PaperNumber("erk", "tost", 70.0, None, "snip", 0.05),
        PaperNumber("big", "tost", 80.0),
    )
    texts = {"paper": "Nobody, Nowhere", "shows": "Two recipes.", "inferred": "", "source": "a poster", "missing": "the rest"}
    preset = Preset(
        "made-up", "two recipes", item="Table 9", cost={}, stages={"small": stages, "paper": stages}, numbers=numbers, **texts
    )
    return reproduction(preset, budget, folder, {"erk": "tost compare", "curves": "tost analyze curvature erk"})


def test_numbers_find_their_cells(tmp_path: Path) -> None:
    rows = {(row.method, row.density, row.variant, row.against): row for row in made_up(tmp_path, "paper").rows}
    first = rows["erk", 0.05, "vanilla", None]
    assert (first.network, first.ours, first.paper) == ("resnet20, mnist5k", (0.50, 0.52), 50.0)
    assert first.difference == pytest.approx(1.0)
    gain = rows["erk", 0.05, "tost", "vanilla"]
    assert gain.difference == pytest.approx(11.0 - 9.5)
    assert (rows["erk", 0.05, "tost", None].paper, rows["erk", 0.02, "vanilla", None].paper) == (None, None)
    assert rows["erk", 0.02, "vanilla", None].ours == (0.40,)  # the other diverged
    for lacking in (rows["snip", 0.05, "tost", None], rows["", None, "tost", None]):
        assert (lacking.network, lacking.ours, lacking.difference) == ("", (), None)
    assert len(rows) == 4 + 2 + 2  # accuracies, gains, not run


def test_a_small_budget_is_not_compared(tmp_path: Path) -> None:
    found = made_up(tmp_path, "small")
    assert {row.difference for row in found.rows} == {None}
    accuracies, gains, stages = sheets_of(found)
    assert accuracies.cells[0] == (
        *("erk", "resnet20, mnist5k", "erk", "95", "vanilla", "50.00", "51.00 ± 1.41", "2", "not comparable"),
    )
    assert accuracies.cells[1][5:] == ("not given", "62.00 ± 2.83", "2", "")
    assert accuracies.cells[-1] == ("big", "", "", "", "tost", "80.00", "not run", "0", "")
    over, paper, ours, difference = gains.cells[0][5:]
    assert (over, paper, difference) == ("vanilla", "+9.50", "not comparable")
    assert ours.startswith("+11.00 [-1.71, +23.71]")
    assert ours.endswith("undecided")
    assert stages.cells == (("erk", "tost compare"), ("curves", "tost analyze curvature erk"))
    assert all("Not run at the paper's budget: not comparable" in sheet.note for sheet in (accuracies, gains))
    assert "Numbers from: a poster Missing: the rest" in stages.note


def test_the_paper_s_budget_is_compared(tmp_path: Path) -> None:
    accuracies, gains, stages = sheets_of(made_up(tmp_path, "paper"))
    assert [row[-1] for row in accuracies.cells] == ["+1.00", "", "", "", "", ""]
    assert [row[-1] for row in gains.cells] == ["+1.50", ""]
    assert not any("not comparable" in sheet.note for sheet in (accuracies, gains, stages))


def test_a_dense_network_has_one_row(tmp_path: Path) -> None:
    grid = small_grid(tmp_path, {"dense": [(0.9, 0.9), (0.9, 0.9)], "tost": [(0.60, 0.64), (0.30, 0.5)]})
    grid.variants["dense"]["backend"] = "dense"  # type: ignore[index]
    grid.save(tmp_path / "erk" / "comparison.json")
    stages = {"small": (Stage("erk", "compare", {}),), "paper": ()}
    preset = Preset("p", "t", "a", "i", "s", "", "", "", {}, stages, (PaperNumber("erk", "dense", 94.8),))
    rows = reproduction(preset, "small", tmp_path, {}).rows
    assert [(row.variant, row.method, row.density, row.against) for row in rows] == [
        ("dense", "", None, None),
        ("tost", "erk", 0.05, None),
        ("tost", "erk", 0.02, None),
    ]
    assert rows[0].paper == 94.8


def test_the_record_is_read_back_and_tells_all(tmp_path: Path) -> None:
    found = made_up(tmp_path, "paper")
    assert write_report(found, tmp_path / "report") == []
    assert read_record(tmp_path / "report.json") == found
    assert "Table 9: two recipes; paper budget" in (tmp_path / "report.md").read_text()
    lines = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    assert (lines[0]["paper %"], lines[0]["ours % mean"], lines[0]["ours - paper"]) == ("50", "51", "1")
    assert (lines[-1]["paper %"], lines[-1]["ours % mean"]) == ("80", "")
