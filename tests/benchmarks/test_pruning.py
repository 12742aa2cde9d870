"""The script that runs methods with all their steps."""

import pytest

from benchmarks import pruning


def test_a_line_a_mask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    what = ["--networks", "resnet20", "--methods", "force", "erk", "--densities", "0.1", "0.001"]
    monkeypatch.setattr("sys.argv", ["pruning", *what, "--batch", "2", "--steps", "2"])
    pruning.main()
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("resnet20, 1 threads")
    assert [line.split()[:3] for line in lines] == [
        [name, "density", density] for name in ("force", "erk") for density in ("0.1", "0.001")
    ]
    assert "2 steps, 1 batches:     27,090 of 270,896 kept" in lines[0]
    assert "1 steps, 1 batches:        271 of 270,896 kept" in lines[3]
