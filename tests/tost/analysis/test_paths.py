"""Records of solution paths and of the trainings that walked them: what the path says, and what is told of a wrong one."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tost.finished_run import finished
from tests.tost.walked_path import EPOCHS, walk, walked_run
from tost.analysis import FilterPath, PathDensities, TrainingCurves, analyze_curves, analyze_density, analyze_path, path_of
from tost.optim import SolutionPath


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> SolutionPath:
    return walk(tmp_path_factory.mktemp("walked") / "my path")


def test_every_filter_at_every_epoch(path: SolutionPath) -> None:
    found = analyze_path(path.folder)
    assert found.title == "my path"
    assert found.epochs == path.epochs == tuple(range(EPOCHS + 1))
    assert [layer.name for layer in found.layers] == ["stem", "depthwise", "head"]
    for layer in found.layers:
        for row, norms in zip(layer.norms, path.norms(layer.name).tolist(), strict=True):
            assert row == pytest.approx(norms, rel=1e-5)
        inside = path.in_support(layer.name).tolist()
        assert [[held == "1" for held in row] for row in layer.inside] == inside
        assert list(layer.densities) == [path.point(epoch).densities[layer.name] for epoch in path.epochs]
        assert [-1 if entry is None else entry for entry in layer.entries] == path.entry_epochs(layer.name).tolist()
    assert {"0", "1"} == set("".join(found.layers[0].inside))
    assert FilterPath.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_layers_by_name_or_pattern(path: SolutionPath) -> None:
    assert [layer.name for layer in analyze_path(path.folder, "head").layers] == ["head"]
    assert [layer.name for layer in analyze_path(path.folder, ("h*", "stem")).layers] == ["stem", "head"]
    with pytest.raises(ValueError, match="layer: pattern 'conv' matches no layer; the layers are stem, depthwise, head"):
        analyze_path(path.folder, "conv")


def test_runs_have_titles_and_the_path_is_found_in_their_folder(tmp_path: Path) -> None:
    run = walked_run(tmp_path)
    assert path_of(run.run_dir).folder == run.run_dir / "solution-path"
    assert analyze_path(run.run_dir).title == "lenet5 on mnist5k, splitlbi, kappa 1, nu 10"
    other = finished(tmp_path, seed=7)
    with pytest.raises(FileNotFoundError, match=r"run: no solution path in .*; `tost train --optimizer splitlbi` records one"):
        analyze_path(other.run_dir)
    with pytest.raises(FileNotFoundError, match=r"run: no solution path in nowhere"):
        analyze_path("nowhere")
    assert not Path("nowhere").exists()


def test_density_of_all_and_of_single_layers(tmp_path: Path) -> None:
    runs = [walked_run(tmp_path, lam, seed) for lam, seed in ((0.21, 0), (0.21, 1), (0.3, 0))]
    found = analyze_density(runs, "s*")
    assert found.title == "lenet5 on mnist5k, splitlbi, kappa 1, nu 10"
    assert [(run.variant, run.seed) for run in found.runs] == [("lam 0.21", 0), ("lam 0.21", 1), ("lam 0.3", 0)]
    assert found.layers == ("stem",)
    for run, result in zip(found.runs, runs, strict=True):
        path = path_of(result.run_dir)
        assert dict(zip(run.epochs, run.overall, strict=True)) == path.densities()
        assert list(run.layers["stem"]) == [path.point(epoch).densities["stem"] for epoch in path.epochs]
    assert analyze_density(runs).layers == ()
    assert PathDensities.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    with pytest.raises(FileNotFoundError, match="run: no solution path in"):
        analyze_density([finished(tmp_path, seed=7)])


def test_curves_are_those_of_the_records(tmp_path: Path) -> None:
    runs = [walked_run(tmp_path), finished(tmp_path, backend="dense", recipe="vanilla", model="lenet5")]
    found = analyze_curves(runs)
    lbi, sgd = found.runs
    assert (lbi.variant, sgd.variant) == ("optimizer splitlbi", "optimizer sgd")
    assert lbi.epochs == tuple(range(1, EPOCHS + 1))
    assert lbi.train_loss == tuple(1 / epoch for epoch in lbi.epochs)
    assert [epoch for epoch, accuracy in zip(lbi.epochs, lbi.test_accuracy, strict=True) if accuracy is not None] == [5, 10]
    assert lbi.support_density == tuple(path_of(runs[0].run_dir).densities().values())[1:]
    assert (sgd.epochs, sgd.train_loss, sgd.test_accuracy, sgd.support_density) == ((1,), (None,), (0.5,), (None,))
    assert TrainingCurves.from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: values["epochs"].append(99), "layers: stem: expected 12 epochs of as many filters each"),
        (lambda values: values["epochs"].reverse(), "epochs: expected some, rising"),
        (lambda values: values["layers"].clear(), "layers: expected at least one, got none"),
        (lambda values: values["layers"][0]["norms"][3].pop(), "layers: stem: expected 11 epochs of as many filters each"),
        (lambda values: values["layers"][0]["inside"].__setitem__(2, "11"), "layers: stem: expected 11 epochs"),
        (lambda values: values["layers"][0]["inside"].__setitem__(2, "11?000"), "inside: expected 0 and 1"),
        (lambda values: values["layers"][0]["norms"][3].__setitem__(0, "big"), "norms: expected"),
    ],
)
def test_a_damaged_record_is_told(path: SolutionPath, damage: Callable[[Any], Any], message: str) -> None:
    values = json.loads(json.dumps(analyze_path(path.folder).as_dict()))
    damage(values)
    with pytest.raises((ValueError, TypeError), match=message):
        FilterPath.from_dict(values)


def test_damaged_records_of_runs_are_told(tmp_path: Path) -> None:
    run = walked_run(tmp_path)
    (curve,) = analyze_curves([run]).runs
    with pytest.raises(ValueError, match="test_loss: expected 10 values, one an epoch, got 0"):
        dataclasses.replace(curve, test_loss=())
    with pytest.raises(ValueError, match="runs: expected at least one, got none"):
        TrainingCurves("x", ())
    (densities,) = analyze_density([run]).runs
    with pytest.raises(ValueError, match="overall: expected 11 densities, one an epoch, got 1"):
        dataclasses.replace(densities, overall=(0.5,))
