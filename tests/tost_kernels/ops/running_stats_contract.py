"""What every compiled backend of running_stats has to keep to: `name` is the backend. Its own tests call these."""

import pytest
import torch
from torch import nn

import tost_kernels as tk
from tost_kernels.ops.running_stats import reference, update_running_stats
from tost_kernels.register import op

MOMENTA = [0.1, 0.75, 1.0, 0.0, None]
ALPHAS = [None, 0.5, 0.0, -0.0, float("nan")]


def moves_as_batch_norm(name: str, momentum: float | None) -> None:
    x = torch.randn(6, 5, 3, 2) * 2 + 1
    norm = nn.BatchNorm2d(5, momentum=momentum)
    stats = torch.full((3, 2, 5), float("nan"))
    stats[2] = torch.stack((x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)))
    mine = [b.clone() for b in norm.buffers()]
    with tk.use_backend(name):
        for _ in range(3):
            norm(x)
            update_running_stats(*mine, stats, 2, x.numel() // 5, momentum)
    for got, want in zip(mine, norm.buffers(), strict=True):
        torch.testing.assert_close(got, want)


def the_kernel_is_the_reference(name: str, momentum: float | None, counted: bool, count: int, alpha: float | None) -> None:
    stats = torch.rand(3, 5, 2).transpose(1, 2)  # any strides
    mine = [torch.randn(10)[::2], torch.rand(5) + 0.5, torch.tensor(3)]
    theirs = [b.clone() for b in mine]
    strength = None if alpha is None else torch.tensor(alpha)
    for side in (mine, theirs):
        batches = side[2] if counted else None
        call = op("running_stats", name) if side is mine else reference
        call(*side[:2], batches, stats, 1, count, momentum, strength)
    for got, want in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


def passes_opcheck_and_names_what_is_wrong(name: str, wrong_alpha: str = r"shape \(\), got \(1\)") -> None:
    update = op("running_stats", name)
    good = (torch.randn(5), torch.rand(5), torch.tensor(3), torch.rand(3, 2, 5), 1, 8, 0.1, torch.tensor(0.5))
    torch.library.opcheck(update, good)
    for place, bad, message in (
        (0, torch.ones(4), r"mean: expected shape \(5\), got \(4\)"),
        (1, torch.ones(5).double(), "var: expected float32, got float64"),
        (2, torch.tensor(1.0), "batches: expected int64, got float32"),
        (3, torch.ones(2, 5), "stats: expected 3 dimensions, got shape"),
        (4, 3, "row: expected 0, 1 or 2, got 3"),
        (7, torch.ones(1), f"alpha: expected {wrong_alpha}"),
    ):
        arguments = [*good[:place], bad, *good[place + 1 :]]
        with pytest.raises(RuntimeError, match=f"running_stats_{name}: {message}"):
            update(*arguments)
