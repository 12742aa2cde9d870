"""Table and pictures of made-up eigenvalues."""

import dataclasses
import math
from pathlib import Path

import pytest

from tost.analysis import Curvature, Line, Measure
from tost.analysis.curvature import NetworkCurvature
from tost.analysis.of_runs import Origin
from tost.report import KINDS, pictures_of, sheets_of
from tost.report import curvature as curvature_report

LINE = Line(reach=1.0, points=5)


def curvature(sharpness: float = 10.0, line: Line | None = LINE, epochs: tuple[int, ...] = (0, 5)) -> Curvature:
    networks = tuple(
        NetworkCurvature(
            Origin(variant, seed, "abc", epoch, form),
            tuple((sharpness + seed + batch, 1.0) for batch in (-1, 1)),
            40,
            () if line is None else tuple(epoch + sharpness * d * d + d for d in line.distances),
        )
        for variant, form in (("vanilla", "finalized"), ("tost", "training"))
        for seed in (0, 1)
        for epoch in epochs
    )
    return Curvature("a network", Measure(batches=2, count=2, line=line), 100 if line is not None else 0, networks)


LOST = dataclasses.replace(curvature().networks[0], losses=(math.inf,) * 5)


@pytest.mark.parametrize(
    "found",
    [
        curvature(line=None, epochs=(0, 5, 30, 60, 90)),
        dataclasses.replace(
            curvature(-3.0, epochs=(5,)), measure=Measure(batches=1, which="LM", parameters="all", line=LINE)
        ),  # no logarithm
        dataclasses.replace(curvature(), networks=(LOST,)),
    ],
)
def test_it_is_drawn_from_what_is_read_back(found: Curvature, tmp_path: Path) -> None:
    again = KINDS[found.kind].read(found.as_dict())
    assert again == found
    (draw,) = pictures_of(again).values()
    draw(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (sheet,) = sheets_of(again)
    assert all((sheet.markdown(), sheet.latex(), sheet.csv()))


def test_a_row_is_all_seeds() -> None:
    (sheet,) = sheets_of(curvature())
    assert sheet.header[2:] == ("eigenvalue", "eigenvalue 2", "its deviation between batches", "test loss", "rise at 1")
    assert sheet.cells[1] == ("vanilla", "epoch 5", "10.5 ± 0.71", "1 ± 0", "1.4 ± 0", "5.000 ± 0.000", "11 ± 0")
    assert sheet.cells[2][:2] == ("tost", "initialisation, ghosts alive")
    assert "over the active weights: cross entropy without label smoothing, eval mode, mean over 2 batches of 128" in sheet.note
    (sheet,) = sheets_of(dataclasses.replace(curvature(), networks=(LOST,)))
    assert sheet.cells[0][5:] == ("", "")


def test_what_moved_and_what_counts_are_said() -> None:
    changed = dataclasses.replace(curvature().measure, which="LM", parameters="all", batches=1)
    (sheet,) = sheets_of(dataclasses.replace(curvature(), measure=changed))
    assert sheet.note.startswith(
        "Eigenvalues largest in size of the Hessian over the active weights, biases and BatchNorm's parameters"
    )
    assert "mean over 1 batch of" in sheet.note


def test_the_loss_is_drawn_of_the_first_epochs_and_the_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(curvature_report, "_line", lambda axes, found, epoch: drawn.append(epoch))
    monkeypatch.setattr(curvature_report, "save", lambda figure, path: None)
    curvature_report.save_curvature_figure(curvature(epochs=(0, 5, 30, 60, 90)), tmp_path / "p.png")
    assert drawn == [0, 5, 30, 90]
