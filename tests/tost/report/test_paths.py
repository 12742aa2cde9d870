"""Tables and pictures of made-up solution paths, densities and trainings."""

import dataclasses
import json
from pathlib import Path

import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from tost.analysis import FilterPath, LayerPath, PathDensities, RunDensities, TrainingCurve, TrainingCurves
from tost.report import KINDS, Record, path_figures, pictures_of, sheets_of
from tost.report.path_figures import INSIDE, OUTSIDE


def path() -> FilterPath:
    conv = LayerPath("conv", ((1.0, 1.0), (2.0, 1.5), (3.0, 0.5)), ("00", "10", "10"), (0.0, 0.5, 0.5))
    fc = LayerPath("fc", ((1.0,), (1.0,), (4.0,)), ("0", "0", "1"), (0.0, 0.0, 0.125))
    return FilterPath("a network", (0, 1, 4), (conv, fc))


def densities() -> PathDensities:
    def run(variant: str, seed: int, end: float) -> RunDensities:
        return RunDensities(variant, seed, "abc", (0, 1, 2, 3, 4), (0.0, 0.1, 0.2, 0.3, end), {"conv": (0.0, 0.0, 0.0, 0.5, 1.0)})

    return PathDensities("a network", (run("nu 1", 0, 0.4), run("nu 1", 1, 0.6), run("nu 2", 0, 0.3)))


def curves() -> TrainingCurves:
    sgd = TrainingCurve("optimizer sgd", 3, "abc", (1, 2), (2.0, 1.0), (None, 1.5), (None, 0.75), (None, None))
    lbi = [
        TrainingCurve(
            "optimizer splitlbi", seed, "abc", (1, 2, 3), (3.0, 2.0, loss), (None, None, 2.0), (None, 0.5, 0.5), density
        )
        for seed, loss, density in ((0, 1.0, (0.1, 0.2, 0.5)), (1, 3.0, (0.1, 0.2, 0.5)))
    ]
    return TrainingCurves("a network", (sgd, *lbi))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(path_figures, "save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize("record", [path(), densities(), curves()], ids=lambda record: record.kind)
def test_every_record_is_drawn_from_what_is_read_back(record: Record, drawn: list[Figure]) -> None:
    again = KINDS[record.kind].read(json.loads(json.dumps(record.as_dict(), allow_nan=False)))
    assert again == record
    (draw,) = pictures_of(again).values()
    draw(Path("p.png"))
    assert drawn[0].get_suptitle().endswith(": a network")
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in drawn[0].axes)
    assert all(sheet.markdown() and sheet.latex() and sheet.csv() for sheet in sheets_of(again))


def test_a_piece_of_a_path_has_the_colour_of_its_end(drawn: list[Figure]) -> None:
    path_figures.save_path_figure(path(), "p.png")
    conv, fc = (axes for axes in drawn[0].axes if axes.get_visible())
    assert (conv.get_title(), fc.get_title()) == ("conv: 1 of 2 in the support", "fc: 1 of 1 in the support")
    pieces = {}
    for lines in conv.collections:
        assert isinstance(lines, LineCollection)
        (colour,) = lines.get_colors()  # type: ignore[no-untyped-call]
        pieces[tuple(colour[:3])] = [segment.tolist() for segment in lines.get_segments()]  # type: ignore[no-untyped-call]
    from matplotlib.colors import to_rgb

    assert pieces[to_rgb(INSIDE)] == [[[0, 1], [1, 2]], [[1, 2], [4, 3]]]
    assert pieces[to_rgb(OUTSIDE)] == [[[0, 1], [1, 1.5]], [[1, 1.5], [4, 0.5]]]


def test_a_path_of_one_epoch(drawn: list[Figure]) -> None:
    start = FilterPath("a network", (0,), (LayerPath("conv", ((1.0, 2.0),), ("01",), (0.5,)),))
    path_figures.save_path_figure(start, "p.png")
    assert [
        len(points.get_offsets()) for points in drawn[0].axes[0].collections if type(points).__name__ == "PathCollection"
    ] == [2]


def test_bands_are_standard_deviations(drawn: list[Figure]) -> None:
    path_figures.save_density_figure(densities(), "p.png")
    overall, conv = drawn[0].axes
    assert conv.get_title() == "conv"
    first, second = overall.lines
    assert (first.get_label(), second.get_label()) == ("nu 1, 2 seeds", "nu 2, seed 0")
    assert list(first.get_ydata()) == pytest.approx([0, 10, 20, 30, 50])
    band = overall.collections[0]
    assert isinstance(band, PolyCollection)
    heights = [y for x, y in band.get_paths()[0].vertices if x == 4]  # type: ignore[union-attr, str-unpack, misc]
    assert (min(heights), max(heights)) == pytest.approx((50 - 200**0.5, 50 + 200**0.5))


def test_runs_without_a_support_have_no_line_there(drawn: list[Figure]) -> None:
    path_figures.save_curves_of_runs_figure(curves(), "p.png")
    loss, accuracy, density = drawn[0].axes
    assert [len(axes.lines) for axes in (loss, accuracy, density)] == [2, 2, 1]
    assert [list(line.get_xdata()) for line in accuracy.lines] == [[2], [2, 3]]
    assert list(loss.lines[1].get_ydata()) == [3.0, 2.0, 2.0]
    path_figures.save_curves_of_runs_figure(TrainingCurves("a network", curves().runs[:1]), "p.png")
    assert [axes.get_ylabel() for axes in drawn[1].axes] == ["training loss", "test accuracy, %"]


def test_tables() -> None:
    (sheet,) = sheets_of(path())
    assert sheet.cells == (
        ("conv", "1 of 2", "50.00", "1", "1", "3", "0.5"),
        ("fc", "1 of 1", "12.50", "4", "4", "4", ""),
    )
    overall, layers = sheets_of(densities())
    assert overall.cells[0] == ("nu 1, 2 seeds", "10.00 ± 0.00", "20.00 ± 0.00", "30.00 ± 0.00", "50.00 ± 14.14")
    assert layers.cells[1] == ("nu 2, seed 0", "conv", "0.00", "0.00", "50.00", "100.00")
    (sheet,) = sheets_of(curves())
    assert sheet.cells == (
        ("optimizer sgd, seed 3", "2", "1.0000", "1.5000", "75.00", ""),
        ("optimizer splitlbi, 2 seeds", "3", "2.0000 ± 1.4142", "2.0000 ± 0.0000", "50.00 ± 0.00", "50.00 ± 0.00"),
    )


def test_long_names_of_settings_are_in_the_picture(drawn: list[Figure]) -> None:
    runs = [dataclasses.replace(run, variant=f"{run.variant}, {'a setting ' * 6}") for run in densities().runs]
    path_figures.save_density_figure(PathDensities("a network", tuple(runs)), "p.png")
    (figure,) = drawn
    assert figure.legends[0].get_window_extent().width < figure.bbox.width


def test_no_axis_shows_more_than_all(drawn: list[Figure]) -> None:
    runs = [dataclasses.replace(run, test_accuracy=(0.0, None, seed)) for seed, run in enumerate(curves().runs[1:])]
    path_figures.save_curves_of_runs_figure(TrainingCurves("a network", tuple(runs)), "p.png")
    assert drawn[0].axes[1].get_ylim() == (0, 103)  # the deviation of 0 and 100% would be from -20 to 120%
