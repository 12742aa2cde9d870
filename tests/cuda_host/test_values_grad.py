"""The values' gradient of the gather kernels, called as a C function, against float64.

Small integers are exact in TF32 and bfloat16, and so are their sums: an error in any index shows as a difference at all.
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")  # whose tests' odd shapes these are

from tests.cuda_host.build import build_functions
from tests.tost_kernels.triton.cases import CASES, Case, Problem, problem

Kernel = Callable[..., Tensor]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    function = build_functions(tmp_path_factory.mktemp("values_grad"), "values_grad").values_grad
    function.restype = ctypes.c_char_p

    def call(
        p: Problem, rows: int = 16, chunk: int = 8, pixels: int = 8, warps: int = 4, stages: int = 2, split: int = 2
    ) -> Tensor:
        """The gradient of p.pattern's values, (nnz,) in the dtype of p.x."""
        g, wide = p.geometry, p.x.dtype == torch.float32
        index = p.pattern.gathered(rows, chunk, 8 if wide else 16, g.groups, g.stride, g.dilation)
        x, grad = (t.permute(1, 2, 3, 0) for t in (p.x, p.grad))
        assert x.is_contiguous()
        assert grad.is_contiguous()
        sizes = [*p.x.shape, *p.grad.shape[1:], *g.weight_shape[2:], *g.stride, *g.padding, *g.dilation, g.groups]
        sizes += [p.pattern.nnz, not wide, index.numel()]
        out = torch.empty(p.pattern.nnz, dtype=p.x.dtype)
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (index, grad, x, out))
        options = (rows, chunk, pixels, warps, stages, split)
        error = function((ctypes.c_int64 * len(sizes))(*sizes), (ctypes.c_int * len(options))(*options), *pointers)
        if error is not None:
            raise RuntimeError(error.decode())
        return out

    return call


def integers(case: Case, dtype: torch.dtype) -> Problem:
    """The same problem with x and grad of small integers, and the gradient that they have."""
    p = problem(case, dtype)
    x, grad = (torch.randint(-3, 4, t.permute(1, 2, 3, 0).shape).to(dtype).permute(3, 0, 1, 2) for t in (p.x, p.grad))
    wide = torch.zeros(case.weight, dtype=torch.float64).requires_grad_()
    g = p.geometry
    out = torch.nn.functional.conv2d(x.double(), wide, None, g.stride, g.padding, g.dilation, g.groups)
    (exact,) = torch.autograd.grad(out, wide, grad.double())
    return replace(p, x=x, grad=grad, values_grad=exact[p.pattern.mask()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_integers_are_exact(kernel: Kernel, name: str, dtype: torch.dtype) -> None:
    p = integers(CASES[name], dtype)
    assert torch.equal(kernel(p).double(), p.values_grad.to(dtype).double())
