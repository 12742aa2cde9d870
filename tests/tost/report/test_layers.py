"""What each layer keeps, as table and picture."""

from pathlib import Path

import pytest
import torch

from tost.masks import Masks, compare
from tost.report import comparison_sheets, layer_figure, layer_sheet

MASKS = Masks({"conv": torch.arange(18).reshape(2, 1, 3, 3) < 9, "all": torch.arange(2000).reshape(40, 50) < 3})
EFFECTIVE = Masks({"conv": torch.arange(18).reshape(2, 1, 3, 3) < 4, "all": torch.zeros(40, 50)})


def test_table() -> None:
    sheet = layer_sheet(MASKS)
    assert sheet.header == ("layer", "shape", "kept", "weights", "kept %")
    assert sheet.cells == (
        ("conv", "2x1x3x3", "9", "18", "50.00"),
        ("all", "40x50", "3", "2,000", "0.15"),
        ("all", "", "12", "2,018", "0.595"),
    )


def test_table_with_paths() -> None:
    sheet = layer_sheet(MASKS, EFFECTIVE, "mine")
    assert sheet.title == "mine"
    assert sheet.header[5:] == ("effective", "effective %")
    assert [row[5:] for row in sheet.cells] == [("4", "22.22"), ("0", "0.00"), ("4", "0.198")]
    assert sheet.note.startswith("Effective density 0.198%, of 0.595%")


def test_picture(tmp_path: Path) -> None:
    other = Masks({"conv": torch.zeros(2, 1, 3, 3), "fc": torch.ones(2, 2)})
    many = {"one": MASKS, "on a path": EFFECTIVE, "other": other, **{str(i): MASKS for i in range(20)}}
    layer_figure({name: one.per_layer() for name, one in many.items()}, tmp_path / "new" / "f.png", "title")
    assert (tmp_path / "new" / "f.png").read_bytes()[1:4] == b"PNG"
    layer_figure({"nothing": Masks({"a": torch.zeros(2, 2)}).per_layer()}, tmp_path / "f.svg")
    assert "nothing (0.00%)" in (tmp_path / "f.svg").read_text()
    with pytest.raises(ValueError, match="masks: expected at least one, got none"):
        layer_figure({}, tmp_path / "f.png")


def test_overlap() -> None:
    sheets = comparison_sheets({("a", "b"): compare(MASKS, EFFECTIVE), ("a", "a"): compare(MASKS, MASKS)})
    assert [sheet.title for sheet in sheets] == ["Overlap in all", "a: a, b: b", "a: a, b: a"]
    assert sheets[0].cells[0] == ("a | b", "2,018", "12", "4", "4", "2.0", "0.333", "0.143", "99.60")
    assert sheets[2].cells[1] == ("all", "2,000", "3", "3", "3", "0.0", "1.000", "0.001", "100.00")
    assert all(len(row) == len(sheet.header) for sheet in sheets for row in sheet.cells)
