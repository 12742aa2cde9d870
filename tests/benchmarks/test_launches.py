"""What a step calls is counted: the network's layers, the optimizer, no views."""

import pytest

from benchmarks.launches import main, operators_of_a_step
from tost.recipe import Recipe


def test_operators_of_a_step_are_counted_by_name() -> None:
    calls = {backend: operators_of_a_step("lenet300100", backend, Recipe.vanilla()) for backend in ("dense", "masked-dense")}
    dense, masked = calls["dense"], calls["masked-dense"]
    assert (dense["addmm"], dense["mm"], dense["_fused_sgd_"]) == (3, 5, 2)  # three layers; weights and biases
    assert "view" not in dense
    assert masked - dense == {"mul": 6}  # by the mask, forward and backward


def test_the_command_prints_a_line_for_each_kind_of_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["launches", "lenet5"])
    main()
    lines = capsys.readouterr().out.splitlines()
    kinds = [f"lenet5 {backend} {title}:" for backend in ("dense", "masked-dense", "sparse") for title in ("vanilla", "ghosts")]
    assert [line.startswith(kind) for line, kind in zip(lines, kinds, strict=True)] == [True] * 6
