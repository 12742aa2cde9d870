"""The question "optimizer" on a small network. A false clock stands in for the real one: nothing is timed."""

import itertools
from collections.abc import Callable

import pytest
import torch

from benchmarks import optimizer, run
from tost.optim import SplitLBI


def test_a_row_an_optimizer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ticks = itertools.count()

    def clock_for(threads: int) -> Callable[[], float]:
        return lambda: 0.01 * next(ticks)

    monkeypatch.setattr(optimizer, "clock_for", clock_for)
    options = run.parser().parse_args(["optimizer", "--networks", "lenet5", "--rounds", "2"])
    records = optimizer.run(options, 1)
    assert [record.variant for record in records] == list(optimizer.RIVALS)
    assert all(record.against == optimizer.BASELINE for record in records)
    assert all(record.ratio is not None and record.ratio.median == pytest.approx(1.0) for record in records)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| S")]
    assert len(rows) == len(optimizer.RIVALS)
    assert "SplitLBI, group | 10.00 [10.00, 10.00] | 1.00x [1.00, 1.00] | 23 |" in rows[2]


def test_the_rivals_do_what_their_names_say() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(3, 3))
    made = {name: optimizer.with_gradients(net, rival.make) for name, rival in optimizer.RIVALS.items()}
    for name, rival in made.items():
        assert rival.defaults["foreach"] is (
            True if name == optimizer.BASELINE else None if "fused" in name else "False" not in name
        )
        if isinstance(rival, SplitLBI):
            assert [group["prox"] for group in rival.param_groups] == ["group" if "group" in name else "lasso", "lasso", None]
        weight = rival.param_groups[0]["params"][0]
        before = weight.detach().clone()
        rival.step()
        assert not torch.equal(before, weight)
