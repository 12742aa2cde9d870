"""A network of every kind of parameter, and its loss on random data: what the tests of SplitLBI train."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.optim import SplitLBI, split_lbi_groups


class SmallNet(nn.Module):
    """Convolutions (one depthwise), a BatchNorm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.stem(x)))
        logits: Tensor = self.head(torch.relu(self.depthwise(h)).mean((2, 3)))
        return logits


def small_net(dtype: torch.dtype = torch.float32) -> SmallNet:
    torch.manual_seed(0)
    return SmallNet().to(dtype)


def small_lbi(net: nn.Module, **options: Any) -> SplitLBI:
    """Some filters of `small_net` enter within ten steps, and not all."""
    groups = split_lbi_groups(net, linear={"lam": 0.06})
    return SplitLBI(groups, **{"lr": 0.1, "nu": 2.0, "lam": 0.21, "momentum": 0.9, "weight_decay": 1e-3, **options})


def loss_of(net: nn.Module, seed: int = 0, part: slice = slice(None)) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 2, 5, 5, generator=random), torch.randint(3, (8,), generator=random)
    return F.cross_entropy(net(x[part].to(next(net.parameters()).dtype)), y[part])


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(net, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def everything(net: nn.Module, optimizer: SplitLBI) -> list[Tensor]:
    """Weights, then V and Gamma where there are some."""
    weights = [p.detach().clone() for p in net.parameters()]
    coupled = [p for p in net.parameters() if optimizer.has_gamma(p)]
    return [*weights, *map(optimizer.dual, coupled), *map(optimizer.gamma, coupled)]


def same_bits(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
