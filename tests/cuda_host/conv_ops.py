"""The CUDA convolution's ops on the problems of tests/tost_kernels/triton/cases.py."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.tost_kernels.triton.cases import Case, Problem, problem
from tost_kernels.register import op

Geometry = tuple[list[int], list[int], list[int], list[int], int]


def tf32_problem(case: Case) -> Problem:
    """A problem in float32 whose operands have the 8 bits of bfloat16, so that TF32 does not round them."""
    p = problem(case, torch.bfloat16)
    bias = None if p.bias is None else p.bias.float()
    return replace(p, x=p.x.float(), values=p.values.float(), bias=bias, grad=p.grad.float())


def geometry(p: Problem) -> Geometry:
    """The ops' arguments between the index and the plan."""
    g = p.geometry
    return list(g.weight_shape), list(g.stride), list(g.padding), list(g.dilation), g.groups


def gathered(p: Problem, rows: int = 16, chunk: int = 8) -> Tensor:
    """The index of a plan with algo=gather."""
    g = p.geometry
    depth = 8 if p.x.dtype == torch.float32 else 16
    return p.pattern.gathered(rows, chunk, depth, groups=g.groups, stride=g.stride, dilation=g.dilation)


def gather_plan(p: Problem, rows: int = 16, chunk: int = 8, **others: int) -> str:
    options = {"rows": rows, "chunk": chunk, "warps": 4} | others
    plan = "algo=gather," + ",".join(f"{key}={value}" for key, value in options.items())
    return plan + (",precision=tf32" if p.x.dtype == torch.float32 else "")


def forward(p: Problem, index: Tensor, plan: str) -> Tensor:
    return op("masked_conv2d", "cuda")(p.x, p.values, p.bias, index, *geometry(p), plan)


def input_grad(p: Problem, index: Tensor, plan: str, layout: str = "batch_last") -> Tensor:
    arguments = p.grad, p.values, index, list(p.x.shape), layout
    return op("masked_conv2d_input_grad", "cuda")(*arguments, *geometry(p), plan)


def values_grad(p: Problem, index: Tensor, plan: str) -> Tensor:
    return op("masked_conv2d_values_grad", "cuda")(p.grad, p.x, index, p.pattern.nnz, *geometry(p), plan)
