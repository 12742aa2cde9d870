"""Runs each CUDA kernel of a library made by build.py on some small odd shapes. In a process of its own, for the sanitizers:
LD_PRELOAD=<their runtime> python -m tests.cuda_host.exercise LIBRARY [OP ...]"""

import sys

import torch

import tost_kernels as tk
from tests.tost_kernels.triton.cases import CASES, Problem, assert_close, problem
from tost_kernels import backend, library
from tost_kernels.layout import as_layout
from tost_kernels.register import op

DIRECT = ("algo=direct,rows=1,chunk=8,warps=4", "algo=direct,rows=2,chunk=8,warps=4,stages=1")
GATHER = ("algo=gather,rows=16,chunk=8,warps=4,precision=tf32", "algo=gather,rows=32,chunk=8,warps=4,stages=3,precision=tf32")


def pswish() -> None:
    for layout in ("contiguous", "channels_last", "batch_last"):
        for dtype in (torch.float32, torch.bfloat16):
            x = as_layout(torch.randn(3, 5, 2, 4).to(dtype), layout).requires_grad_()
            beta = torch.rand(5, requires_grad=True)
            tk.pswish(x, beta).sum().backward()


def masked_conv2d(plans: tuple[str, ...]) -> None:
    for plan in plans:
        wanted = dict(part.split("=") for part in plan.split(","))
        rows, chunk, gather = int(wanted["rows"]), int(wanted["chunk"]), wanted["algo"] == "gather"
        for name, dtype in (("strided_uneven", torch.float32), ("groups", torch.bfloat16)):
            depth = (8 if dtype == torch.float32 else 16) if gather else 1
            p = problem(CASES[name], dtype)
            g = p.geometry
            gathered = p.pattern.gathered(rows, chunk, depth, groups=g.groups, stride=g.stride, dilation=g.dilation)
            run(p, p.pattern.index if rows == 1 else gathered, plan if dtype == torch.float32 else plan.replace("tf32", "ieee"))


def run(p: Problem, index: torch.Tensor, plan: str) -> None:
    g = p.geometry
    geometry = [*map(list, (g.weight_shape, g.stride, g.padding, g.dilation)), g.groups]
    out = op("masked_conv2d", "cuda")(p.x, p.values, p.bias, index, *geometry, plan)
    op("masked_conv2d_input_grad", "cuda")(p.grad, p.values, index, list(p.x.shape), "batch_last", *geometry, plan)
    op("masked_conv2d_values_grad", "cuda")(p.grad, p.x, index, p.pattern.nnz, *geometry, plan)
    if "gather" not in plan:
        assert_close(out, p.out)


KERNELS = {"pswish": pswish, "direct": lambda: masked_conv2d(DIRECT), "gather": lambda: masked_conv2d(GATHER)}

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.ops.load_library(sys.argv[1])
    library.EMULATED = True
    backend.survey()
    with tk.use_backend("cuda"):
        for name in sys.argv[2:] or KERNELS:
            KERNELS[name]()
    print("exercised")
