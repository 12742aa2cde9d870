"""`tost analyze`: every part of it draws, tabulates and records, on one command."""

import json
from pathlib import Path

import pytest

from tost import training
from tost.analysis import setting
from tost.cli import main
from tost.data import Dataset

SMALL = ["--model", "mlp", "--density", "0.2", "--seeds", "2"]
TRAINING = ["--steps", "2", "--batch-size", "16"]


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> None:
    for module in (training, setting):
        monkeypatch.setattr(module, "load", lambda name, folder: toy_images)


@pytest.mark.parametrize(
    ("command", "heading", "items"),
    [
        (
            ["iterations", *SMALL, *TRAINING, "--methods", "[force]", "--iterations", "[1,3]", "--batches", "1"],
            "Number of",
            "points",
        ),
        (["saliency", *SMALL, "--methods", "[snip,force]", "--method-steps", "3", "--batches", "1"], "Saliency", "points"),
        (["recovery", *SMALL, "--method-steps", "3"], "Pruned and recovered", "steps"),
        (["layers", *SMALL, "--method-steps", "3", "--methods", "[random,snip,force]"], "Weights left", "layers"),
    ],
)
def test_one_command_draws_tabulates_and_records(
    command: list[str], heading: str, items: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", *command, "--out", str(tmp_path / "o")]) == 0
    text = capsys.readouterr().out
    assert heading in text
    stem = tmp_path / "o" / command[0]
    assert stem.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert stem.with_suffix(".md").read_text().startswith(f"**{heading}")

    assert main(["analyze", *command, "--out", str(tmp_path / "o"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(stem.with_suffix(".json").read_text())
    assert record["seeds"] == [0, 1]
    assert record[items]
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "tost analyze: error: expected a command: iterations, saliency, recovery, layers, surface, "),
        (["layrs"], "tost analyze: error: command: unknown name 'layrs'; did you mean layers?"),
        (["layers", "--seeds", "0"], "tost: error: seeds: expected at least 1, got 0"),
        (["layers", "--methods", "[snap]"], "tost: error: method: unknown name 'snap'; did you mean snip?"),
        (["layers", "--methods", "snap"], "tost: error: method: unknown name 'snap'; did you mean snip?"),
        (["layers", "--methods", "[]"], "tost: error: methods: expected at least one"),
        (["recovery", "--keep-alive", "true"], "tost analyze recovery: error: unrecognized arguments: --keep_alive true"),
        (["iterations", "--teacher", "runs/x"], "tost analyze iterations: error: unrecognized arguments: --teacher runs/x"),
        (["layers", "--lr", "3"], "tost analyze layers: error: unrecognized arguments: --lr 3"),
        (["iterations", "--iterations", "[0]"], "tost: error: iterations: expected a whole number of at least 1, got 0"),
        (["iterations", "--jobs", "0"], "tost: error: jobs: expected at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path)] if len(arguments) > 1 else []
    assert main(["analyze", *arguments, *out]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["iterations", "saliency", "recovery", "layers"])
def test_every_part_has_help_json_and_seed(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", what, "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--json", "--seed ", "--seeds", "--out", "--threads"):
        assert option in text
