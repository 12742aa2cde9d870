"""Filters along a training: which are looked at, what the record holds, and what is drawn of it."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tests.tost.analysis.short_runs import short_run, small_world
from tost import Result
from tost.analysis import Filters, Picture, analyze_filters, path_of
from tost.analysis.networks import network_of
from tost.analysis.what_filters_see import guided_gradients
from tost.cli import main
from tost.data import Dataset, eval_batches
from tost.report import filter_figures, sheets_of
from tost.report.path_figures import INSIDE, OUTSIDE

LBI = {"optimizer": "splitlbi", "backend": "dense", "split_lbi": {"nu": 1, "lam": 0.12, "lam_linear": 0.02}}
LAYER = "layer2.0.conv1"


@pytest.fixture(autouse=True)
def small(toy_images: Dataset) -> Iterator[None]:
    with small_world(toy_images):
        yield


@pytest.fixture(scope="module")
def run(toy_images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Result:
    with small_world(toy_images):
        return short_run(tmp_path_factory.mktemp("runs"), "vanilla", **LBI)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(run: Result, toy_images: Dataset) -> Filters:
    with small_world(toy_images):
        return analyze_filters(run, LAYER, images=(0, 3), steps=2)


def test_every_filter_after_every_epoch(run: Result, found: Filters, toy_images: Dataset) -> None:
    path = path_of(run.run_dir)
    assert (found.title, found.layer, found.count) == ("resnet20 on mnist5k, splitlbi, kappa 1, nu 1", LAYER, 8)
    assert (found.epochs, found.shape, found.images) == ((0, 1, 4), (1, 8, 8), (0, 3))
    entries = path.entry_epochs(LAYER).tolist()
    assert sorted(found.filters) == list(range(8))
    at = [entries[o] if entries[o] >= 0 else 99 for o in found.filters]
    assert at == sorted(at)
    for view in found.views:
        assert view.inside == bool(path.point(view.epoch).in_support(LAYER)[view.filter])
        assert view.norm == pytest.approx(float(path.point(view.epoch).norms[LAYER][view.filter]), rel=1e-5)
    assert {view.inside for view in found.views} == {True, False}

    snapshot = network_of(run.run_dir, 1)
    (images, _), *_ = eval_batches(toy_images, 2, subset=torch.tensor([0, 3]))
    expected = guided_gradients(snapshot.net, LAYER, found.filters, images[1])
    for i, view in enumerate(view for view in found.views if view.epoch == 1):
        scale = float(expected[i].abs().max())
        assert view.guided[1].scale == scale
        torch.testing.assert_close(scale * view.guided[1].levels(found.shape), expected[i], rtol=0, atol=0.51 * scale / 127)
    assert Filters.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found


def test_those_that_are_asked_for_and_runs_without_a_path(run: Result, tmp_path: Path) -> None:
    some = analyze_filters(run, LAYER, (4,), (6, 2), steps=1)
    assert [(view.epoch, view.filter) for view in some.views] == [(4, 6), (4, 2)]
    sgd = analyze_filters(short_run(tmp_path, "vanilla"), "fc", (1,), steps=1)
    assert {view.inside for view in sgd.views} == {None}
    assert sgd.filters == tuple(sorted(range(3), key=lambda o: -_norm(tmp_path, o)))
    (sheet,) = sheets_of(sgd)
    assert sheet.cells[0][:3] == (str(sgd.filters[0]), "1", "no path")


def _norm(out: Path, o: int) -> float:
    (folder,) = out.iterdir()
    return float(network_of(folder).net.get_submodule("fc").weight[o].detach().norm())  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "layer2.0.conv9"}, "layer: unknown name 'layer2.0.conv9'; did you mean"),
        ({"filters": (8,)}, "filters: expected a whole number of at least 0 and below 8, got 8"),
        ({"filters": (1, 1)}, r"filters: expected at least one and each once, got \[1, 1\]"),
        ({"images": (20,)}, "images: expected a whole number of at least 0 and below 20, got 20"),
        ({"images": ()}, r"images: expected at least one and each once, got \[\]"),
        ({"steps": 0}, "steps: expected a whole number of at least 1, got 0"),
        ({"jitter": -1}, "jitter: expected a whole number of at least 0, got -1"),
        ({"epochs": (5,)}, "epochs: expected 0 to 4"),
    ],
)
def test_wrong_arguments_are_told(run: Result, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze_filters(run, **{"layer": LAYER, **options})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: values["views"].pop(), "views: expected the same filters after each epoch"),
        (lambda values: values["views"].clear(), "views: expected at least one, got none"),
        (lambda values: values["views"][3]["guided"].pop(), "guided: expected 2 pictures, one an image, got 1"),
        (lambda values: values["views"][3]["exciting"].update(pixels="AAAA"), "pixels: expected 64 bytes, got 3"),
        (lambda values: values["views"][3].update(inside="yes"), "inside: expected"),
        (lambda values: values.update(shape=[1, 8, 9]), "pixels: expected 72 bytes, got 64"),
    ],
)
def test_a_damaged_record_is_told(found: Filters, damage: Callable[[Any], Any], message: str) -> None:
    values = json.loads(json.dumps(found.as_dict()))
    damage(values)
    with pytest.raises((ValueError, TypeError), match=message):
        Filters.from_dict(values)


def test_pictures_of_nothing_and_of_extremes() -> None:
    assert Picture.of(torch.zeros(1, 2, 2)).levels((1, 2, 2)).tolist() == [[[0, 0], [0, 0]]]
    values = torch.tensor([[[-2.0, 2.0, 0.0]]])
    picture = Picture.of(values)
    assert picture.scale == 2
    assert picture.levels((1, 1, 3)).equal(values / 2)


def test_frames_say_what_is_in_the_support(found: Filters, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(filter_figures, "save", lambda figure, path: drawn.append(figure))
    filter_figures.save_exciting_figure(found, "p.png")
    axes = drawn[0].axes
    assert len(axes) == len(found.views)
    for place, view in zip(axes, found.views, strict=True):
        assert to_hex(place.spines["left"].get_edgecolor()).upper() == (INSIDE if view.inside else OUTSIDE)
    assert [place.get_title() for place in axes[:8]] == [f"filter {o}" for o in found.filters]
    assert [place.get_ylabel() for place in axes[::8]] == ["epoch 0", "epoch 1", "epoch 4"]

    colour = dataclasses.replace(found.views[0], guided=(), exciting=Picture.of(torch.rand(3, 2, 2)), inside=None, activation=0.0)
    one = dataclasses.replace(found, shape=(3, 2, 2), images=(), inputs=(), views=(colour,))
    filter_figures.save_exciting_figure(one, "p.png")
    (place,) = drawn[1].axes
    assert place.images[0].get_array().shape == (2, 2, 3)  # type: ignore[union-attr]
    assert [text.get_text() for text in place.texts] == ["none"]
    assert drawn[1].legends == []


def test_one_command(run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o"
    words = ["analyze", "filters", str(run.run_dir), "--layer", LAYER, "--epochs", "1,4", "--filters", "0,1", "--steps", "1"]
    assert main([*words, "--images", "2", "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["kind"], record["images"], len(record["views"])) == ("filters", [2], 4)
    for name in ("filters.png", "filters-guided.png"):
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main([*words, "--filters", "a"]) == 2
    assert capsys.readouterr().err == "tost: error: filters: expected numbers as in 0,5,30, got 'a'\n"
    assert main(words[:3]) == 2
    assert capsys.readouterr().err.startswith("tost: error: layer: unknown name None; expected one of conv1, fc, layer1.0.conv1")
