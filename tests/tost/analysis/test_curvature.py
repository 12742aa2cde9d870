"""Curvature of the networks of runs: what is measured, kept and read back."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import tests.tost.analysis.short_runs as short
from tost import Result
from tost.analysis import curvature
from tost.analysis.curvature import Curvature, Line, Measure, analyze_curvature, losses_along, moving
from tost.analysis.hessian import Hessian
from tost.analysis.networks import active, network_of
from tost.data import Dataset, eval_batches
from tost.ghosts import ghosts_of

MEASURE = Measure(batches=2, batch_size=16, line=Line(reach=1.0, points=5, images=7))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_images: Dataset) -> Iterator[list[Result]]:
    with short.small_world(toy_images):
        yield [short.short_run(tmp_path_factory.mktemp("runs"), recipe) for recipe in ("vanilla", "tost")]


def test_curvature_of_runs(runs: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "parts"
    found = analyze_curvature(runs, (1, 4), MEASURE, folder=folder)
    places = [(one.origin.variant, one.origin.epoch, one.origin.form) for one in found.networks]
    ghosts = [("tost rescale_iterations=2", epoch, form) for epoch in (1,) for form in ("training", "finalized")]
    assert places == [
        *(("vanilla", epoch, "finalized") for epoch in (1, 4)),
        *ghosts,
        ("tost rescale_iterations=2", 4, "finalized"),
    ]
    assert found.images == 7
    for one in found.networks:
        assert [len(values) for values in one.eigenvalues] == [1, 1]
        assert one.mean() == pytest.approx(sum(one.eigenvalues[0] + one.eigenvalues[1]) / 2)
        assert one.products >= 12
        assert len(one.losses) == 5
    assert len({one.mean() for one in found.networks}) == len(found.networks)
    assert Curvature.from_dict(json.loads(json.dumps(found.as_dict()))) == found

    # a restart measures only what is missing
    file = sorted(folder.iterdir())[0]
    parts = json.loads(file.read_text())
    del parts["batches"]["1"]
    file.write_text(json.dumps(parts))
    sorted(folder.iterdir())[1].write_text("{")
    measured = []
    honest = Hessian.top
    monkeypatch.setattr(Hessian, "top", lambda self, *rest: measured.append(1) or honest(self, *rest))
    assert analyze_curvature(runs, (1, 4), MEASURE, folder=folder) == found
    assert len(measured) == 3
    assert analyze_curvature(runs, (1, 4), MEASURE, folder=folder) == found
    fewer = analyze_curvature(runs, (1,), dataclasses.replace(MEASURE, batches=1), folder=folder)
    assert len(measured) == 3
    assert fewer.networks[0].eigenvalues == found.networks[0].eigenvalues[:1]
    other = analyze_curvature(runs[:1], (1,), dataclasses.replace(MEASURE, seed=1), folder=folder)
    assert other.networks[0].eigenvalues != found.networks[0].eigenvalues


def test_the_loss_rises_along_the_top_eigenvector_as_its_eigenvalue_says(runs: list[Result], toy_images: Dataset) -> None:
    found = network_of(runs[1].run_dir, 1, "training")
    weights = active(found.net, found.masks)
    batch = next(eval_batches(toy_images, 48, "train"))
    hessian = Hessian(found.net, weights, *batch)
    value, vector = (part[0] for part in hessian.top(torch.randn(len(hessian)), tolerance=1e-6))
    before = {name: tensor.clone() for name, tensor in found.net.state_dict().items()}
    step = 0.02
    low, middle, high = losses_along(found.net, weights, vector, (-step, 0.0, step), [batch])
    assert (low + high - 2 * middle) / step**2 == pytest.approx(value, rel=0.05)
    assert middle == pytest.approx(F.cross_entropy(found.net(batch[0]), batch[1]).item(), rel=1e-6)
    assert all(tensor.equal(before[name]) for name, tensor in found.net.state_dict().items())


def test_what_moves(runs: list[Result]) -> None:
    found = network_of(runs[1].run_dir, 1, "training")
    weights, everything = (moving(found.net, found.masks, name) for name in curvature.PARAMETERS)
    ghosts = {parameter for ghost in ghosts_of(found.net).values() for parameter in ghost.parameters()}
    assert ghosts
    assert {parameter for parameter, _ in everything.values()} == set(found.net.parameters()) - ghosts
    assert list(everything)[: len(weights)] == list(weights)
    assert all(parameter.dim() == 1 for name, (parameter, _) in everything.items() if name not in weights)


def test_the_batches_are_training_images_without_augmentation(runs: list[Result], toy_images: Dataset) -> None:
    found = network_of(runs[0].run_dir)
    images = toy_images.normalised(toy_images.train.pixels)
    batches = list(curvature._batches(found, Measure(batches=5, batch_size=16)))  # more than an epoch has
    assert len(batches) == 5
    for inputs, targets in batches:
        places = [int((images == one).flatten(1).all(1).nonzero()[0]) for one in inputs]
        assert toy_images.train.targets[places].equal(targets)
    assert not batches[0][0].equal(batches[3][0])


def test_errors(runs: list[Result], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which: unknown name 'SA'"):
        Measure(which="SA")
    with pytest.raises(ValueError, match=r"points: expected an odd number, .*got 4"):
        Line(points=4)
    with pytest.raises(ValueError, match=r"images: expected at most 20 \(the test images of toy\), got 21"):
        analyze_curvature(runs, None, Measure(line=Line(images=21)), folder=tmp_path)
    with pytest.raises(ValueError, match="batch_size: expected 1 to 48"):
        analyze_curvature(runs, None, Measure(batch_size=49), folder=tmp_path)
