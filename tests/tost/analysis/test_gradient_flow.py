"""Gradient norms over active weights: by hand, and at every network that a run kept."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tost.analysis.short_runs import short_run, small_world
from tost import Masks
from tost.analysis import GradientFlow, analyze_gradient_flow
from tost.analysis.gradient_flow import GradientNorms, NetworkGradients, gradient_norms
from tost.analysis.networks import active, network_of
from tost.analysis.of_runs import Origin
from tost.data import Dataset, TrainBatches
from tost.models.resnet import ResNet


def test_two_batches_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    nn.init.zeros_(net[0].weight)  # type: ignore[arg-type]
    batches = [(torch.tensor([[2.0, 4.0]]), torch.tensor([0])), (torch.tensor([[6.0, 0.0]]), torch.tensor([1]))]
    # logits 0: dL/dw is (-1/2, 1/2) x or (1/2, -1/2) x: [[-1, -2], [1, 2]] and [[3, 0], [-3, 0]]
    assert gradient_norms(net, None, batches).layers == {"0.weight": pytest.approx((math.sqrt(10) + math.sqrt(18)) / 2)}
    masks = Masks({"0": torch.tensor([[True, False], [False, True]])})
    # of them the kept ones: -1 and 2; 3 and 0
    norms = gradient_norms(masks.apply_to(net), masks, batches)
    assert norms.layers == {"0.weight": pytest.approx((math.sqrt(5) + 3) / 2)}
    assert norms.total == norms.summed == norms.layers["0.weight"]


def test_a_network_with_batch_normalisation() -> None:
    net = ResNet((1, 1), (4, 8), in_channels=1).eval()
    masks = Masks({name: torch.rand(m.weight.shape) < 0.3 for name, m in net.named_modules() if isinstance(m, nn.Conv2d)})
    net = masks.apply_to(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [(torch.randn(8, 1, 8, 8), torch.arange(8) % 10) for _ in range(2)]
    found = gradient_norms(net, masks, batches)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert not net.training

    net.train()
    squares = []
    for inputs, targets in batches:
        net.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        squares.append({name: float(p.grad.square().sum()) for name, (p, _) in active(net, masks).items() if p.grad is not None})
    assert list(found.layers) == list(squares[0])
    for name, norm in found.layers.items():
        assert norm == pytest.approx(sum(math.sqrt(one[name]) for one in squares) / 2, rel=1e-5)
    assert found.total == pytest.approx(sum(math.sqrt(sum(one.values())) for one in squares) / 2, rel=1e-5)
    assert found.summed == pytest.approx(sum(found.layers.values()))
    assert found.total < found.summed


def test_every_network_that_was_kept(tmp_path: Path, toy_images: Dataset) -> None:
    with small_world(toy_images):
        runs = [short_run(tmp_path, "vanilla"), short_run(tmp_path, "tost")]
        done: list[int] = []
        found = analyze_gradient_flow(runs, batches=4, seed=5, progress=done.append)
        assert [(one.origin.epoch, one.origin.form) for one in found.networks] == [
            *((epoch, "finalized") for epoch in (0, 1, 4)),
            *((epoch, form) for epoch in (0, 1) for form in ("training", "finalized")),
            (4, "finalized"),
        ]
        assert done == [1, 2, 3, 4, 5, 6]
        at_start = network_of(runs[0].run_dir, 0)
        source = TrainBatches(toy_images, 16, 5, stream="gradient flow", augment=False)
        batches = [*source.epoch(0), next(source.epoch(1))]  # three batches an epoch
        assert found.networks[0].norms == gradient_norms(at_start.net, at_start.masks, batches)
        one = analyze_gradient_flow(runs[1:], (0,), batches=4, seed=5)
        assert [network.norms for network in one.networks] == [network.norms for network in found.networks[3:5]]
        assert analyze_gradient_flow(runs[1:], (0,), batches=4, seed=6).networks != one.networks
        with pytest.raises(ValueError, match="batches: expected a whole number of at least 1, got 0"):
            analyze_gradient_flow(runs, batches=0)
        with pytest.raises(ValueError, match="seed: expected a whole number of at least 0"):
            analyze_gradient_flow(runs, seed=-1)
        with pytest.raises(ValueError, match="runs: expected at least one"):
            analyze_gradient_flow([])
    assert GradientFlow.from_dict(found.as_dict()) == found


def test_records_hold_what_is_not_finite() -> None:
    norms = GradientNorms(math.inf, {"a": math.inf, "b": 1.0})
    found = GradientFlow("title", 1, 0, (NetworkGradients(Origin("tost", 0, "abc", 0, "training"), norms),))
    assert GradientFlow.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found
