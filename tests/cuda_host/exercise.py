"""Runs the CUDA kernels of a library made by build.py on a few small odd shapes. In a process of its own, for the sanitizers:
LD_PRELOAD=<their runtime> python -m tests.cuda_host.exercise LIBRARY [NAME ...]   (the keys of KERNELS)"""

import sys

import torch
from torch import Tensor

import tost_kernels as tk
from tests.cuda_host.conv_ops import forward, gather_plan, gathered, input_grad, tf32_problem, values_grad
from tests.tost_kernels.ops.tails import make
from tests.tost_kernels.triton.cases import CASES, Case, Problem, assert_close, problem
from tost_kernels import backend, library
from tost_kernels.layout import as_layout
from tost_kernels.register import op

TENSORS = ((torch.float32, "contiguous"), (torch.float32, "channels_last"), (torch.bfloat16, "batch_last"))
SEVERAL_TILES = Case((35, 9, 3, 5), (18, 9, 3, 3), padding=(1, 1), density=0.2)


def pswish() -> None:
    for dtype, layout in TENSORS:
        x = as_layout(torch.randn(3, 5, 2, 4).to(dtype), layout).requires_grad_()
        tk.pswish(x, torch.rand(5, requires_grad=True)).sum().backward()


def ghost_skip_add() -> None:
    for dtype, layout in TENSORS:
        make((3, 5, 2, 4), "all batch", layout).to(dtype).results(torch.randn(3, 5, 2, 4).to(dtype), "cuda")


def running_stats() -> None:
    stats, mean, var, batches = torch.rand(3, 2, 70), torch.zeros(70), torch.ones(70), torch.tensor(1)
    op("running_stats", "cuda")(mean, var, batches, stats, 0, 2, None, torch.tensor(0.5))
    torch.testing.assert_close(mean, stats[0, 0] / 2)


def direct() -> None:
    p = problem(SEVERAL_TILES, torch.float32)
    conv(p, p.pattern.index, "algo=direct,rows=1,chunk=8,warps=4")
    p = problem(CASES["strided_uneven"], torch.bfloat16)
    g = p.geometry
    index = p.pattern.gathered(2, 8, 1, groups=g.groups, stride=g.stride, dilation=g.dilation)
    conv(p, index, "algo=direct,rows=2,chunk=8,warps=4,stages=1")


def gather() -> None:
    for p, rows, stages in (
        (tf32_problem(SEVERAL_TILES), 16, 2),
        (tf32_problem(CASES["groups"]), 32, 1),
        (problem(CASES["strided_uneven"], torch.bfloat16), 16, 3),
    ):
        conv(p, gathered(p, rows), gather_plan(p, rows, stages=stages))


def linear() -> None:
    """By the ops as a user calls them: the plan is the default."""
    x = torch.randn(17, 37, requires_grad=True)
    pattern = tk.Pattern(torch.rand(20, 37) < 0.2)
    tk.masked_linear(x, torch.randn(pattern.nnz, requires_grad=True), pattern).sum().backward()


def conv(p: Problem, index: Tensor, plan: str) -> None:
    got = forward(p, index, plan), input_grad(p, index, plan), values_grad(p, index, plan)
    for mine, exact in zip(got, (p.out, p.input_grad, p.values_grad), strict=True):
        assert_close(mine, exact)


KERNELS = {kernel.__name__: kernel for kernel in (pswish, ghost_skip_add, running_stats, direct, gather, linear)}

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.ops.load_library(sys.argv[1])
    library.EMULATED = True
    backend.survey()
    with tk.use_backend("cuda"):
        for name in sys.argv[2:] or KERNELS:
            KERNELS[name]()
