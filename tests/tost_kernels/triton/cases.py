"""Small convolutions of odd shapes, and what float64 makes of them: for kernels that are called directly."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from tost_kernels.layout import to_batch_last
from tost_kernels.triton.options import Geometry


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    density: float = 0.3
    bias: bool = True


CASES = {
    "plain": Case((8, 9, 3, 3), (10, 9, 3, 3), padding=(1, 1)),
    "one_sample": Case((1, 3, 3, 4), (4, 3, 3, 3), padding=(1, 1)),
    "one_pixel": Case((33, 20, 1, 1), (7, 20, 1, 1), density=0.5),
    "pointwise_strided": Case((16, 9, 5, 5), (5, 9, 1, 1), stride=(2, 2)),
    "strided_uneven": Case((6, 5, 6, 5), (6, 5, 3, 3), stride=(2, 3), padding=(1, 0)),
    "stride_beyond_kernel": Case((5, 4, 7, 7), (3, 4, 2, 2), stride=(4, 4)),
    "dilated": Case((4, 5, 5, 6), (4, 5, 3, 3), padding=(1, 2), dilation=(2, 2)),
    "even_kernel": Case((7, 4, 3, 5), (5, 4, 2, 4), padding=(0, 3), stride=(1, 2)),
    "groups": Case((4, 12, 3, 3), (9, 4, 3, 3), padding=(1, 1), groups=3),
    "depthwise": Case((8, 10, 3, 3), (10, 1, 3, 3), padding=(1, 1), groups=10, density=0.6),
    "many_channels": Case((2, 40, 2, 2), (34, 40, 3, 3), padding=(1, 1), density=0.05),
    "wide_padding": Case((4, 3, 2, 2), (4, 3, 2, 2), padding=(3, 3)),
    "empty": Case((3, 4, 3, 3), (6, 4, 3, 3), padding=(1, 1), density=0.0),
    "full": Case((3, 4, 2, 2), (6, 4, 3, 3), padding=(1, 1), density=1.0, bias=False),
    "no_samples": Case((0, 4, 3, 3), (6, 4, 3, 3), padding=(1, 1)),
}


@dataclass(frozen=True)
class Problem:
    """Batch-last operands, and in float64 the output and the gradients."""

    x: Tensor
    values: Tensor
    bias: Tensor | None
    grad: Tensor
    pattern: tk.Pattern
    geometry: Geometry
    out: Tensor
    input_grad: Tensor
    values_grad: Tensor


def problem(case: Case, dtype: torch.dtype) -> Problem:
    mask = torch.rand(case.weight) < case.density
    if 0 < case.density < 1:
        mask[-1] = False  # an output channel without weights
        mask[0, 0, 0, 0] = True
    pattern = tk.Pattern(mask)
    x = torch.randn(case.x).to(dtype)
    values = torch.randn(pattern.nnz).to(dtype)
    bias = torch.randn(case.weight[0]).to(dtype) if case.bias else None
    wide_x = x.double().requires_grad_()
    wide_values = values.double().requires_grad_()
    weight = torch.zeros(case.weight, dtype=torch.float64).masked_scatter(mask, wide_values)
    wide_bias = None if bias is None else bias.double()
    out = F.conv2d(wide_x, weight, wide_bias, case.stride, case.padding, case.dilation, case.groups)
    grad = torch.randn(out.shape).to(dtype)
    input_grad, values_grad = torch.autograd.grad(out, (wide_x, wide_values), grad.double())
    geometry = Geometry(case.weight, case.stride, case.padding, case.dilation, case.groups)
    operands = to_batch_last(x), values, bias, to_batch_last(grad)
    return Problem(*operands, pattern, geometry, out.detach(), input_grad, values_grad)


def assert_close(got: Tensor, want: Tensor) -> None:
    """Sums in float32, rounded once: half a unit of bfloat16, or the last bits of sums that may cancel."""
    assert got.shape == want.shape
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[got.dtype]
    if want.numel():
        assert ((got.double() - want).abs() <= rounding * want.abs() + 3e-6 * want.abs().max()).all()
