"""The values' gradient of the gather kernels, called as a C function, against float64.

Small integers are exact in TF32 and bfloat16, and so are their sums: an error in any index shows as a difference at all.
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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


MANY_ROWS = Case((70, 20, 3, 5), (50, 20, 3, 3), padding=(1, 1), density=0.3)
OPTIONS = {
    "groups of 32 rows": {"rows": 32, "chunk": 16},
    "more rows than warps": {"warps": 2},
    "all stages": {"stages": 3, "split": 1},
    "one stage": {"stages": 1, "pixels": 16, "split": 3},
    "warps share pixels": {"warps": 16, "pixels": 16},
    "more warps than pixels": {"rows": 64, "warps": 16, "pixels": 4, "stages": 3},
    "as many parts as tiles": {"split": 256},
    "parts by itself": {"split": 0, "chunk": 32},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(kernel: Kernel, options: dict[str, int]) -> None:
    p = integers(MANY_ROWS, torch.bfloat16)
    assert torch.equal(kernel(p, **options), p.values_grad.bfloat16())


@pytest.mark.parametrize("channels", [7, 16, 32])
def test_dense_columns_fill_one_or_several_passes(kernel: Kernel, channels: int) -> None:
    p = integers(Case((33, channels, 3, 3), (17, channels, 3, 3), padding=(1, 1), density=1.0), torch.float32)
    assert torch.equal(kernel(p, chunk=32, pixels=4).double(), p.values_grad)


def test_unaligned_memory_is_read_element_by_element(kernel: Kernel) -> None:
    p = integers(Case((8, 5, 3, 3), (6, 5, 3, 3), padding=(1, 1)), torch.bfloat16)

    def shifted(t: Tensor) -> Tensor:
        memory = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.permute(1, 2, 3, 0).shape)
        return memory.copy_(t.permute(1, 2, 3, 0)).permute(3, 0, 1, 2)

    for moved in (replace(p, x=shifted(p.x)), replace(p, grad=shifted(p.grad))):
        assert torch.equal(kernel(moved), p.values_grad.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy_and_the_same_bits(kernel: Kernel, dtype: torch.dtype) -> None:
    """TF32: dY is rounded to 11 bits and x cut to them, so a product is off by at most 2^-11 + 2^-10 of itself."""
    p = problem(MANY_ROWS, dtype)
    got = kernel(p)
    assert torch.equal(got, kernel(p))
    wide = torch.zeros(MANY_ROWS.weight, dtype=torch.float64).requires_grad_()
    out = torch.nn.functional.conv2d(p.x.double().abs(), wide, padding=(1, 1))
    (magnitude,) = torch.autograd.grad(out, wide, p.grad.double().abs())
    of_products = 2**-11 + 2**-10 if dtype == torch.float32 else 0
    of_result = 2**-8 * p.values_grad.abs() if dtype == torch.bfloat16 else 0
    error = (got.double() - p.values_grad).abs()
    assert (error <= (of_products + 1e-6) * magnitude[p.pattern.mask()] + of_result).all()


def test_what_does_not_fit_is_refused(kernel: Kernel) -> None:
    p = problem(Case((4, 64, 9, 9), (4, 64, 9, 9), density=0.1), torch.float32)
    with pytest.raises(RuntimeError, match="values_grad: plan: values_grad.chunk=64 .* bytes of shared memory"):
        kernel(p, chunk=64, pixels=4)
