"""Trainings that searches are made of: Network Slimming's penalty, Soft Filter Pruning, weights to start from."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tost
from tost import Config, training
from tost.callbacks import Callback, Run, Stopped
from tost.callbacks.soft_filters import SoftFilters
from tost.data import Dataset
from tost.models.resnet import ResNet
from tost.preparation import prepare
from tost.runs import RunFolder
from tost.training import train
from tost.update import Update


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_images: Dataset) -> Config:
    monkeypatch.setattr(training, "load", lambda name, folder: toy_images)
    monkeypatch.setattr(tost.models, "build", lambda name, classes, channels, size: ResNet((1, 1), (4, 8), classes, channels))
    rest: dict[str, Any] = {"backend": "dense", "recipe": "vanilla", "batch_size": 16, "out": str(tmp_path / "runs")}
    return Config(steps=6, **rest)  # 3 steps an epoch


@pytest.mark.parametrize("parts", [1, 2])
def test_the_penalty_is_that_of_the_loss(parts: int) -> None:
    """Once a step, however many parts the batch has."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -0.25, 0.0]))  # type: ignore[operator]
    config = Config(backend="dense", recipe=tost.Recipe.vanilla(), bn_l1=0.3, accumulate=parts, batch_size=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)

    def loss_of(outputs: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 0.0 * outputs.sum()

    update = Update(config, net, optimizer, loss_of, lambda x: x, torch.device("cpu"))
    loss, _ = update(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))
    assert loss == 0.0  # the penalty is no part of what is reported
    scale = net[1].weight
    assert isinstance(scale, torch.Tensor)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, torch.tensor([0.3, -0.3, 0.0]), rtol=0, atol=0)
    others = [p for p in net.parameters() if p is not scale]
    assert all(p.grad is not None and not p.grad.any() for p in others)


def test_no_penalty_without_batch_norm() -> None:
    config = Config(backend="dense", recipe=tost.Recipe.vanilla(), bn_l1=1e-4)
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="bn_l1: expected a network with BatchNorm"):
        Update(config, net, torch.optim.SGD(net.parameters(), lr=0.1), lambda o, i, t: o.sum(), lambda x: x, torch.device("cpu"))


class Watch(Callback):
    """Which filters of the stem are zero after each step, and at the end of each epoch; it may stop the run."""

    def __init__(self, stop_at: int = -1) -> None:
        self.steps: list[int] = []
        self.epochs: list[int] = []
        self._stop_at = stop_at

    def _zeros(self, run: Run) -> int:
        return sum(int((~m.weight.flatten(1).any(1)).sum()) for m in run.net.modules() if isinstance(m, nn.Conv2d))

    def before_step(self, run: Run) -> None:
        run.stop_wanted = run.step == self._stop_at

    def after_step(self, run: Run) -> None:
        self.steps.append(self._zeros(run))

    def on_epoch_end(self, run: Run) -> None:
        self.epochs.append(self._zeros(run))


def test_soft_filters_are_zeroed_and_go_on_learning(config: Config) -> None:
    soft = dataclasses.replace(config, soft_filter=True, density=0.6)
    watch = Watch()
    result = train(soft, callbacks=[watch])
    assert watch.epochs[0] == watch.epochs[1] > 0
    assert watch.steps[:4] == [0, 0, 0, 0]  # after the first epoch they have come back by the next step
    assert 0.4 < result.accounting.density <= 0.6
    weights = RunFolder.of(soft).load_model()
    with pytest.raises(Stopped):
        train(soft, overwrite=True, callbacks=[Watch(stop_at=4)])
    assert train(soft).test_loss == result.test_loss
    torch.testing.assert_close(RunFolder.of(soft).load_model(), weights, rtol=0, atol=0)


def test_an_average_is_without_the_same_filters(config: Config) -> None:
    net, average = (nn.Sequential(nn.Conv2d(1, 4, 3)) for _ in range(2))
    soft = dataclasses.replace(config, soft_filter=True, density=0.5)
    SoftFilters().on_epoch_end(Run(soft, net, torch.optim.SGD(net.parameters(), lr=1.0), 1, averaged=average))
    kept, of_average = (module[0].weight.flatten(1).any(1) for module in (net, average))  # type: ignore[operator]
    assert kept.sum() == 2
    assert torch.equal(kept, of_average)


def test_a_run_starts_from_the_weights_of_another(config: Config, toy_images: Dataset) -> None:
    trained = train(config, snapshots=[1])
    folder = RunFolder.of(config)
    sparse = dataclasses.replace(config, backend="sparse", method="magnitude", density=0.3)
    drawn = prepare(sparse, toy_images)
    for place, state in ((folder.path, folder.load_model()), (folder.snapshot(1), folder.load_snapshot(1))):
        prepared = prepare(dataclasses.replace(sparse, weights=str(place)), toy_images)
        torch.testing.assert_close(dict(prepared.dense.state_dict()), state, rtol=0, atol=0)
        assert prepared.masks is not None
        assert prepared.masks != drawn.masks  # chosen on these weights
        assert prepared.weights_fingerprint != drawn.weights_fingerprint
    started = dataclasses.replace(sparse, weights=str(folder.path))
    whole = train(started)
    assert whole.weights_fingerprint != trained.weights_fingerprint
    with pytest.raises(Stopped):
        train(started, overwrite=True, callbacks=[Watch(stop_at=2)])
    again = train(started)
    assert (again.test_loss, again.weights_fingerprint) == (whole.test_loss, whole.weights_fingerprint)


def test_weights_of_another_network(config: Config, toy_images: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config)
    monkeypatch.setattr(tost.models, "build", lambda name, classes, channels, size: ResNet((1, 1), (4, 12), classes, channels))
    other = dataclasses.replace(config, weights=str(RunFolder.of(config).path))
    with pytest.raises(ValueError, match=r"weights: .*model.safetensors does not fit resnet20 for toy: .*size mismatch"):
        prepare(other, toy_images)
