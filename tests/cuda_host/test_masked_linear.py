"""masked_linear in CUDA C++, run by the shim on the CPU: a 1x1 convolution of images of one pixel, in its two layouts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.register import op

pytestmark = pytest.mark.usefixtures("emulated_cuda")

GATHER = "algo=gather,rows=16,chunk=8,warps=4,precision=tf32"
SHAPES = [(17, 20, 37, 0.2), (1, 5, 9, 0.5), (3, 33, 40, 1.0), (70, 10, 64, 0.05), (4, 6, 8, 0.0), (0, 6, 8, 0.5)]


def operands(batch: int, outputs: int, inputs: int, density: float) -> tuple[Tensor, Tensor, tk.Pattern, Tensor, Tensor]:
    """x, values, pattern, bias and a gradient of the output, of numbers that TF32 holds."""
    mask = torch.rand(outputs, inputs) < density
    mask[0] = False
    pattern = tk.Pattern(mask)
    x, values, bias, grad = (
        torch.randn(*shape).bfloat16().float() for shape in ((batch, inputs), (pattern.nnz,), (outputs,), (batch, outputs))
    )
    return x, values, pattern, bias, grad


def index_of(pattern: tk.Pattern, plan: str) -> Tensor:
    return pattern.gathered(16, 8, 8) if plan else pattern.index


@pytest.mark.parametrize("layout", ["contiguous", "batch_last"])
@pytest.mark.parametrize("plan", ["", GATHER])
@pytest.mark.parametrize(("batch", "outputs", "inputs", "density"), SHAPES)
def test_output_and_gradients(batch: int, outputs: int, inputs: int, density: float, plan: str, layout: str) -> None:
    x, values, pattern, bias, grad = operands(batch, outputs, inputs, density)
    index, shape, x = index_of(pattern, plan), [outputs, inputs], as_layout(x, layout)
    out = op("masked_linear", "cuda")(x, values, bias, index, shape, plan)
    got = [
        out,
        op("masked_linear_input_grad", "cuda")(grad, values, index, list(x.shape), layout, shape, plan),
        op("masked_linear_values_grad", "cuda")(grad, x, index, pattern.nnz, shape, plan),
    ]
    assert layout_of(out) == layout_of(x) or min(out.shape) <= 1
    wide_x, wide_values = x.double().requires_grad_(), values.double().requires_grad_()
    exact = F.linear(wide_x, pattern.scatter(wide_values), bias.double())
    want = [exact, *torch.autograd.grad(exact, (wide_x, wide_values), grad.double())]
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own reading
@pytest.mark.parametrize("plan", ["", GATHER])
def test_opcheck(plan: str) -> None:
    x, values, pattern, bias, _ = operands(3, 4, 5, 0.5)
    leaves = (t.requires_grad_() for t in (x, values, bias))
    results = torch.library.opcheck(op("masked_linear", "cuda"), (*leaves, index_of(pattern, plan), [4, 5], plan))
    assert list(results.values()) == ["SUCCESS"] * 4


def test_bad_arguments() -> None:
    x, values, pattern, bias, grad = operands(3, 4, 5, 0.5)
    with pytest.raises(RuntimeError, match=r"masked_linear_cuda: input: expected shape \(N, 5\), got \(3, 4\)"):
        op("masked_linear", "cuda")(x[:, :4], values, bias, pattern.index, [4, 5], "")
    with pytest.raises(RuntimeError, match=r"masked_linear_cuda: weight_shape: expected 2 sizes, got \(4, 5, 1, 1\)"):
        op("masked_linear", "cuda")(x, values, bias, pattern.index, [4, 5, 1, 1], "")
    with pytest.raises(RuntimeError, match=r"masked_linear_input_grad_cuda: input_shape: expected \(3, 5\), got \(3, 4\)"):
        op("masked_linear_input_grad", "cuda")(grad, values, pattern.index, [3, 4], "batch_last", [4, 5], "")
    with pytest.raises(RuntimeError, match=r"masked_linear_values_grad_cuda: grad_output: expected shape \(3, 4\), got \(3, 5\)"):
        op("masked_linear_values_grad", "cuda")(x, x, pattern.index, pattern.nnz, [4, 5], "")
