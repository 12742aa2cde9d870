"""Running statistics: torch's own BatchNorm is the table, the compiled kernel is held against it and the reference."""

import pytest
import torch
from torch import Tensor, nn

import tost_kernels as tk
from tests.tost_kernels.ops import running_stats_contract
from tost_kernels import backend
from tost_kernels.ops.running_stats import reference, update_running_stats
from tost_kernels.register import op

needs_cpu = pytest.mark.skipif(backend.why_not("ghost_skip_add", "cpu") is not None, reason="the compiled library is absent")
NATIVE = [pytest.param("cpu", marks=needs_cpu), "reference"]


def buffers(channels: int = 5) -> list[Tensor]:
    return [torch.randn(channels), torch.rand(channels) + 0.5, torch.tensor(3)]


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("momentum", [0.1, 0.75, 1.0, 0.0, None])
@pytest.mark.parametrize("row", [0, 2])
def test_moves_as_batch_norm(row: int, momentum: float | None, name: str) -> None:
    x = torch.randn(6, 5, 3, 2) * 2 + 1
    norm = nn.BatchNorm2d(5, momentum=momentum)
    stats = torch.full((3, 2, 5), float("nan"))
    stats[row] = torch.stack((x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)))
    mine = [b.clone() for b in norm.buffers()]
    with tk.use_backend(name):
        for _ in range(3):
            norm(x)
            update_running_stats(*mine, stats, row, x.numel() // 5, momentum)
    for got, want in zip(mine, norm.buffers(), strict=True):
        torch.testing.assert_close(got, want)


@needs_cpu
@pytest.mark.parametrize("alpha", [None, torch.tensor(0.5), torch.tensor(0.0), torch.tensor(-0.0), torch.tensor(float("nan"))])
@pytest.mark.parametrize("count", [0, 1, 64])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_kernel_is_the_reference(momentum: float | None, counted: bool, count: int, alpha: Tensor | None) -> None:
    stats = torch.rand(3, 5, 2).transpose(1, 2)  # any strides
    mine = buffers()
    mine[0] = torch.randn(10)[::2]
    theirs = [b.clone() for b in mine]
    for side in (mine, theirs):
        batches = side[2] if counted else None
        call = op("running_stats", "cpu") if side is mine else reference
        call(*side[:2], batches, stats, 1, count, momentum, alpha)
    for got, want in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


def test_other_dtypes_go_through_the_reference() -> None:
    stats = torch.rand(3, 2, 5)
    for dtype in (torch.bfloat16, torch.float64):
        mine = [b.to(dtype) if b.is_floating_point() else b for b in buffers()]
        want = mine[0].double() * 0.75 + stats[0, 0].double() * 0.25
        update_running_stats(*mine, stats, 0, 8, 0.25)
        torch.testing.assert_close(mine[0], want.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-3)
        assert mine[2] == 4


@pytest.mark.parametrize("name", NATIVE)
def test_a_graph_that_saved_them_notices(name: str) -> None:
    mean, var, batches = buffers()
    x = torch.randn(5, requires_grad=True)
    y = (x * mean).sum()
    with tk.use_backend(name):
        update_running_stats(mean, var, batches, torch.rand(3, 2, 5), 0, 8, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@needs_cpu
def test_opcheck_and_errors() -> None:
    running_stats_contract.passes_opcheck_and_names_what_is_wrong("cpu", wrong_alpha="0 dimensions, got shape")
