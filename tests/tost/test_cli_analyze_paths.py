"""`tost analyze path | density | curves`: one command from run folders to pictures, tables and a record that is drawn again."""

import json
from pathlib import Path

import pytest

from tests.tost.walked_path import walked_run
from tost.cli import main


def test_from_runs_to_pictures_tables_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = walked_run(tmp_path / "runs").run_dir
    walked_run(tmp_path / "runs", seed=1)
    runs, out = str(tmp_path / "runs"), tmp_path / "o"
    for words, heading in (
        (["path", str(run), "--layer", "stem"], "Solution path: lenet5 on mnist5k, splitlbi, kappa 1, nu 10"),
        (["density", runs, "--layer", "[stem,head]"], "Density along the path: lenet5 on mnist5k"),
        (["curves", runs], "Training: lenet5 on mnist5k, splitlbi"),
    ):
        assert main(["analyze", *words, "--out", str(out)]) == 0
        assert capsys.readouterr().out.startswith(heading)
        stem = out / words[0]
        record = json.loads(stem.with_suffix(".json").read_text())
        assert record["kind"] == words[0]
        assert str(tmp_path) not in json.dumps(record)
        assert stem.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert main(["report", str(stem.with_suffix(".json")), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [record]
    assert main(["report", str(out / "path.json"), "--out", str(tmp_path / "again")]) == 0
    capsys.readouterr()
    for suffix in (".png", ".md", ".csv", ".tex"):
        assert (out / "path").with_suffix(suffix).read_bytes() == (tmp_path / "again" / "path").with_suffix(suffix).read_bytes()

    for words, message in (
        (["path", "nowhere"], "run: no solution path in nowhere"),
        (["path", str(run), "--layer", "conv"], "layer: pattern 'conv' matches no layer"),
        (["density", "nowhere"], "runs: no such folder: nowhere"),
        (["curves", "nowhere"], "runs: no such folder: nowhere"),
    ):
        assert main(["analyze", *words, "--out", str(tmp_path / "p")]) == 2
        assert capsys.readouterr().err.startswith(f"tost: error: {message}")
    assert not (tmp_path / "p").exists()
