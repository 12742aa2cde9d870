"""Random small networks of all the parts that channels go through, with random masks: the outputs stay."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tost
from tests.tost.shrinking.dead_filters import assert_same, randomised
from tost.masks import Masks

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Identity)
POOLS = (nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2, 1), nn.MaxPool2d(2), nn.Dropout(), nn.ReplicationPad2d(1))


class Step(NamedTuple):
    """What is computed from earlier values, by their numbers: a module, "add", "mul" or "cat"."""

    what: str
    of: tuple[int, ...]


class RandomNet(nn.Module):
    """Steps on images, then the mean or the pixels of the last values through two linear layers."""

    def __init__(self, random: np.random.Generator, steps: int) -> None:
        super().__init__()
        self.layers, self.steps = nn.ModuleDict(), []
        shapes = [(2, 6)]  # channels and size of each value
        while len(self.steps) < steps:
            source = int(random.integers(max(0, len(shapes) - 4), len(shapes)))
            alike = [i for i, shape in enumerate(shapes[1:], 1) if shape == shapes[source]]
            same_size = [i for i, shape in enumerate(shapes[1:], 1) if shape[1] == shapes[source][1]]
            kind = random.choice(["conv", "conv", "conv", "norm", "act", "act", "pool", "add", "add", "mul", "cat", "again"])
            channels, size = shapes[source]
            if kind in ("add", "mul") and len(alike) > 1:
                self.steps.append(Step(kind, tuple(int(i) for i in random.choice(alike, 2))))
                shapes.append(shapes[source])
            elif kind == "cat" and same_size:
                parts = tuple(int(i) for i in random.choice(same_size, 2))
                if sum(shapes[part][0] for part in parts) <= 16:
                    self.steps.append(Step(kind, parts))
                    shapes.append((sum(shapes[part][0] for part in parts), size))
            elif kind == "again" and (
                calls := [s for s in self.steps if s.what in self.layers and shapes[s.of[0]] == shapes[source]]
            ):
                again = calls[int(random.integers(len(calls)))]
                shapes.append(shapes[self.steps.index(again) + 1])
                self.steps.append(Step(again.what, (source,)))
            elif kind in ("conv", "norm", "act", "pool"):
                layer, shape = self._layer(str(kind), channels, size, random)
                if shape[1] < 3:
                    continue
                name = f"{kind}{len(self.steps)}"
                self.layers[name] = layer
                self.steps.append(Step(name, (source,)))
                shapes.append(shape)
        self.ends = [len(shapes) - 1, max(1, len(shapes) - 3)]
        self.flat = bool(random.integers(2))
        features = sum(shapes[end][0] * (shapes[end][1] ** 2 if self.flat else 1) for end in self.ends)
        self.fc1, self.norm, self.fc2 = nn.Linear(features, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    @staticmethod
    def _layer(kind: str, channels: int, size: int, random: np.random.Generator) -> tuple[nn.Module, tuple[int, int]]:
        if kind == "norm":
            return nn.BatchNorm2d(channels), (channels, size)
        if kind == "act":
            return ACTIVATIONS[random.integers(len(ACTIVATIONS))](), (channels, size)
        if kind == "pool":
            pool = POOLS[random.integers(len(POOLS))]
            return pool, (channels, pool(torch.zeros(1, 1, size, size)).shape[-1])
        groups = int(random.choice([g for g in (1, 1, 1, 2, channels) if channels % g == 0]))
        out = (
            channels
            if groups > 1 and random.integers(2)
            else groups * int(random.integers(1, 8 // groups + 1) if groups < 8 else 1)
        )
        kernel = int(random.choice([1, 2, 3]))
        padding = int(random.integers(2))
        mode = str(random.choice(["zeros", "zeros", "replicate"]))
        conv = nn.Conv2d(channels, out, kernel, 1, padding, groups=groups, bias=bool(random.integers(2)), padding_mode=mode)
        return conv, (out, size + 2 * padding - kernel + 1)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for what, of in self.steps:
            inputs = [values[i] for i in of]
            if what == "add":
                values.append(inputs[0] + inputs[1])
            elif what == "mul":
                values.append(inputs[0] * inputs[1])
            elif what == "cat":
                values.append(torch.cat(inputs, 1))
            else:
                values.append(self.layers[what](inputs[0]))
        ends = [values[end].flatten(1) if self.flat else values[end].mean((2, 3)) for end in self.ends]
        return self.fc2(torch.relu(self.norm(self.fc1(torch.cat(ends, 1)))))


def random_masks(net: nn.Module, random: np.random.Generator) -> dict[str, Tensor]:
    """Dead filters, weights of a whole input channel that are gone, and single weights."""
    masks = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            shape = module.weight.shape
            mask = random.random(shape) < random.choice([1.0, 0.5])
            if name != "fc2":
                mask[random.random(shape[0]) < random.choice([0.2, 0.6])] = False
            mask[:, random.random(shape[1]) < random.choice([0.0, 0.4])] = False
            masks[name] = torch.from_numpy(mask)
    return masks


def made(seed: int, steps: int) -> tuple[nn.Module, Tensor]:
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net: Any = randomised(RandomNet(random, steps), seed).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[torch.from_numpy(random.random(module.num_features) < 0.1)] = 0
            if isinstance(module, nn.BatchNorm2d | nn.Conv2d) and module.bias is not None and random.random() < 0.4:
                module.bias.zero_()
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.zero_()
    Masks(random_masks(net, random)).apply_to(net, inplace=True, form="zeros")
    return net, torch.from_numpy(random.standard_normal((2, 2, 6, 6)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 14))
def test_outputs_stay(seed: int, steps: int) -> None:
    net, x = made(seed, steps)
    result = tost.shrink(net, input_shape=(2, 6, 6))
    assert_same(net, result.model, x, 1e-12)
    again = tost.shrink(result.model, input_shape=(2, 6, 6))
    assert_same(net, again.model, x, 1e-11)
    for layer in result.report.layers:
        assert 1 <= layer.outputs_left <= layer.outputs


def test_they_do_become_smaller() -> None:
    smaller = kept = folded = 0
    for seed in range(12):
        report = tost.shrink(made(seed, 10)[0], input_shape=(2, 6, 6)).report
        smaller += report.parameters[1] < report.parameters[0]
        kept += bool(report.kept)
        folded += bool(report.folded)
    assert smaller >= 9
    assert kept >= 4
    assert folded >= 4
