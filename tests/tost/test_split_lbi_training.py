"""`tost train` with SplitLBI: the path is on disk, and a run that was cut off walks the same one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tost import Config, training
from tost.callbacks import Callback, Run, Stopped
from tost.data import Dataset
from tost.optim import SolutionPath
from tost.runs import RunFolder
from tost.training import train


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> Config:
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    options = {"nu": 2, "lam": 1.0, "lam_linear": 0.005}
    rest: dict[str, Any] = {"backend": "dense", "recipe": "vanilla", "schedule": "constant", "model": "mlp"}
    return Config(optimizer="splitlbi", split_lbi=options, steps=8, batch_size=16, out=str(tmp_path / "runs"), **rest)  # type: ignore[arg-type]


def points(config: Config) -> dict[int, dict[str, torch.Tensor]]:
    path = SolutionPath.load(RunFolder.of(config).path_points)
    return {epoch: {**path.point(epoch).masks, **path.point(epoch).norms} for epoch in path.epochs}


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def before_step(self, run: Run) -> None:
        run.stop_wanted = run.step == self.step


def test_the_support_grows_from_nothing(config: Config) -> None:
    result = train(config)
    path = SolutionPath.load(RunFolder.of(config).path_points)
    densities = path.densities()
    assert list(densities) == list(range(result.history[-1]["epoch"] + 1))
    assert densities[0] == 0.0
    assert list(densities.values()) == sorted(densities.values())
    assert densities[max(densities)] > 0.05
    assert [line["support_density"] for line in result.history] == list(densities.values())[1:]


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_that_was_cut_off_walks_the_same_path(config: Config, step: int) -> None:
    whole = train(config)
    expected = points(config)
    weights = RunFolder.of(config).load_model()
    with pytest.raises(Stopped):
        train(config, overwrite=True, callbacks=[StopAt(step)])
    again = train(config)
    assert again.test_loss == whole.test_loss
    torch.testing.assert_close(RunFolder.of(config).load_model(), weights, rtol=0, atol=0)
    torch.testing.assert_close(points(config), expected, rtol=0, atol=0)


def test_a_run_that_begins_anew_forgets_the_path(config: Config) -> None:
    train(config)
    RunFolder.of(config).forget()
    with pytest.raises(FileNotFoundError):
        points(config)
