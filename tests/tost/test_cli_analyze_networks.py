"""`tost analyze` of the networks of runs: one command from run folders to pictures, tables and a record."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tost.analysis.short_runs import short_run, small_world
from tost.cli import main
from tost.data import Dataset


@pytest.fixture(autouse=True)
def small(toy_images: Dataset) -> Iterator[None]:
    with small_world(toy_images):
        yield


COMMANDS = {
    "surface": (["--epochs", "1", "--points", "3", "--images", "8"], "Loss around the network", "surfaces", 2),
    "activations": (["--epochs", "4"], "Activations near zero", "networks", 2),
    "curvature": (["--epochs", "1", "--batches", "1", "--batch_size", "16", "--line"], "Curvature of the loss", "networks", 3),
    "gradients": (["--batches", "1"], "Gradient flow", "networks", 8),
}


def test_from_runs_to_pictures_tables_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for recipe in ("vanilla", "tost"):
        short_run(tmp_path / "runs", recipe)
    for what, (options, heading, items, count) in COMMANDS.items():
        arguments = ["analyze", what, str(tmp_path / "runs"), *options, "--out", str(tmp_path / "o")]
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith(heading)
        stem = tmp_path / "o" / what
        assert stem.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        record = json.loads(stem.with_suffix(".json").read_text())
        assert record["kind"] == what
        assert record["title"] == "resnet20 on mnist5k, erk mask, 70% sparse"
        assert len(record[items]) == count
        assert str(tmp_path) not in json.dumps(record)
        assert all(stem.with_suffix(suffix).is_file() for suffix in (".md", ".csv", ".tex"))
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record

    assert main(["analyze", "surface", str(tmp_path / "runs"), "--epochs", "2", "--out", str(tmp_path / "p")]) == 2
    assert "epochs: no network after epoch 2 in" in capsys.readouterr().err
    for arguments, message in (
        (["surface", "--points", "2"], "points: expected a whole number of at least 3, got 2"),
        (["curvature", "--points", "4", "--line"], "points: expected an odd number"),
        (["curvature", "--which", "SA"], "which: unknown name 'SA'"),
        (["curvature", "--batch_size", "49"], "batch_size: expected 1 to 48"),
        (["activations", "--threshold", "-1"], "threshold: expected a number >= 0, got -1"),
        (["gradients", "--batches", "0"], "batches: expected a whole number of at least 1, got 0"),
        (["gradients", "--epochs", "1;2"], "epochs: expected epochs as in 0,5,30, got '1;2'"),
    ):
        assert main(["analyze", arguments[0], str(tmp_path / "runs"), *arguments[1:], "--out", str(tmp_path / "p")]) == 2
        assert capsys.readouterr().err.startswith(f"tost: error: {message}")
    assert not (tmp_path / "p").exists()


def test_pswish_needs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "o")]
    assert main(["analyze", "pswish", "--betas", "[1,.inf]", "--recipe.fade_end", "0.25", "--steps", "40", *out]) == 0
    assert capsys.readouterr().out.startswith("PSwish: x * sigmoid(beta x)")
    record = json.loads((tmp_path / "o" / "pswish.json").read_text())
    assert [curve["beta"] for curve in record["curves"]] == [1.0, None]
    assert (record["fade"]["total"], record["fade"]["window"]) == (40, [0, 10])
    assert (tmp_path / "o" / "pswish.png").is_file()
    assert main(["analyze", "pswish", "--betas", "0", *out]) == 2
    assert capsys.readouterr().err == "tost: error: betas: expected a number > 0, got 0.0\n"


def test_runs_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in COMMANDS:
        assert main(["analyze", what, str(tmp_path / "nothing"), "--out", str(tmp_path / "o")]) == 2
        assert capsys.readouterr().err.startswith("tost: error: runs: no such folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", COMMANDS)
def test_every_part_has_help_json_and_seed(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", what, "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--json", "--seed ", "--out", "--threads"):
        assert option in text
