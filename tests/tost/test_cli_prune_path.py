"""`tost prune --path`: masks from any point of a solution path, in a file that `tost train --masks` takes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tost.data
from tests.tost.analysis.short_runs import short_run, small_world
from tests.tost.walked_path import walk
from tost import Masks
from tost.analysis import path_of
from tost.cli import main
from tost.data import Dataset
from tost.runs import Result, RunFolder

LBI = {"optimizer": "splitlbi", "backend": "dense", "split_lbi": {"nu": 1, "lam": 0.15, "lam_linear": 0.02}}


@pytest.fixture
def run(toy_images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Result]:
    with small_world(toy_images):
        monkeypatch.setattr(tost.data, "load", lambda name, folder: toy_images)
        yield short_run(tmp_path / "runs", "vanilla", **LBI)  # type: ignore[arg-type]


def test_masks_by_epoch_by_density_and_the_projection(run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = path_of(run.run_dir), RunFolder(run.run_dir)
    assert 0 < path.point(1).density < path.point(4).density < 1
    masks_file, weights_file = tmp_path / "m.safetensors", tmp_path / "w.safetensors"
    command = ["prune", "--path", str(run.run_dir), "--out", str(masks_file)]

    assert main([*command, "--epoch", "1", "--projected", str(weights_file), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    masks = Masks.load(masks_file)
    assert masks == path.masks(epoch=1)
    assert values["effective_density"] <= values["density"] == path.point(1).density
    assert values["projected"]["file"] == str(weights_file)
    weights, snapshot = load_file(weights_file), folder.load_snapshot(1)
    assert weights.keys() == snapshot.keys()
    for name, value in snapshot.items():
        layer = name.removesuffix(".weight")
        expected = value * masks[layer] if layer in masks and name.endswith(".weight") else value
        assert weights[name].equal(expected), name

    assert main([*command, "--density", "0.3", "--exact", "--projected", str(weights_file)]) == 0
    assert "masks from the solution path, of resnet20" in capsys.readouterr().out
    masks = Masks.load(masks_file)
    assert masks == path.masks(density=0.3, exact=True)
    assert masks.kept == round(0.3 * masks.total)
    assert load_file(weights_file)["conv1.weight"].equal(folder.load_model()["conv1.weight"] * masks["conv1"])

    density = path.point(1).density
    assert main([*command, "--density", str(density)]) == 0
    assert Masks.load(masks_file) == path.masks(density=density)
    capsys.readouterr()

    config = [
        "--masks",
        str(masks_file),
        "--steps",
        "2",
        "--batch-size",
        "16",
        "--recipe",
        "vanilla",
        "--out",
        str(tmp_path / "again"),
    ]
    assert main(["train", *config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accounting"]["weights_kept"] == Masks.load(masks_file).kept

    assert main([*command, "--epoch", "0"]) == 0
    assert "cannot learn; a larger --density or a later --epoch has more" in capsys.readouterr().err
    assert main(["shrink", str(run.run_dir), "--passes", "0"]) == 0
    assert f"are in Gamma, not in these weights: tost prune --path {run.run_dir} --out FILE" in capsys.readouterr().err

    for words, message in (
        (["--epoch", "9"], "epoch: expected a recorded one of"),
        (["--epoch", "1", "--exact"], "exact: expected it with a density, got an epoch"),
        (["--epoch", "2", "--projected", str(tmp_path / "v.safetensors")], f"{folder.snapshot(2)}: no such network in training"),
        (["--density", "0.999", "--exact"], "density: expected at most"),
    ):
        masks_file.unlink(missing_ok=True)
        assert main([*command, *words]) == 2
        assert capsys.readouterr().err.startswith(f"tost: error: {message}")
        assert not masks_file.exists()


def test_a_path_that_a_training_of_ones_own_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = walk(tmp_path / "path")
    assert main(["prune", "--path", str(tmp_path / "path"), "--epoch", "10", "--out", str(tmp_path / "m.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["effective_density"] is None
    assert Masks.load(tmp_path / "m.npz") == path.masks(epoch=10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "0"], "epoch: expected --path with it, got none"),
        (["--exact"], "exact: expected --path with it, got none"),
        (["--projected", "w.safetensors"], "projected: expected --path with it, got none"),
        (["--path", "nowhere"], "run: no solution path in nowhere; `tost train --optimizer splitlbi` records one"),
        (["--path", "nowhere", "--projected", "w.npz"], "projected: expected a file FILE.safetensors, got w.npz"),
        (["--path", "nowhere", "--projected", "no/w.safetensors"], "projected: no such folder: no"),
    ],
)
def test_errors_are_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prune", *words]) == 2
    assert capsys.readouterr().err == f"tost: error: {message}\n"
    assert list(tmp_path.iterdir()) == []
