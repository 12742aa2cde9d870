"""masked_linear: a table worked out by hand, odd shapes on every backend, the op contract, and clear errors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from tost_kernels.backend import why_not
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.register import op

BACKENDS = ["reference", "dense", "cpu"]

# name: batch, inputs, outputs, density
CASES = {
    "plain": (64, 50, 30, 0.2),
    "one_sample": (1, 17, 9, 0.4),
    "odd_batch": (37, 33, 21, 0.3),
    "large_batch": (300, 12, 5, 0.5),
    "one_input": (20, 1, 8, 0.8),
    "one_output": (20, 40, 1, 0.3),
    "wide": (33, 784, 10, 0.02),
    "primes": (31, 101, 13, 0.1),
    "two_tiles_and_one": (513, 7, 6, 0.5),
    "empty": (10, 6, 4, 0.0),
    "full": (18, 6, 4, 1.0),
    "no_samples": (0, 6, 4, 0.5),
}


def needs(backend: str) -> None:
    reason = why_not("masked_linear", backend)
    if reason is not None:
        pytest.skip(reason)


def tensors(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, tk.Pattern, Tensor]:
    batch, inputs, outputs, density = CASES[name]
    mask = torch.rand(outputs, inputs) < density
    if 0 < density < 1 and outputs > 1:
        mask[-1] = False  # an output without weights
    pattern = tk.Pattern(mask)
    shapes = (batch, inputs), (pattern.nnz,), (outputs,)
    x, values, bias = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, values, pattern, bias


def run(function: Any, *inputs: Tensor, grad: Tensor | None = None) -> dict[str, Tensor]:
    """Output and gradients of `function(x, values, bias)`."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    out = function(*leaves)
    if grad is None:
        grad = torch.sin(torch.arange(out.numel())).view(out.shape) + 0.5  # sums that do not cancel to nothing
    out.backward(grad.to(out.dtype))
    return {"out": out.detach(), **{f"{n}.grad": leaf.grad for n, leaf in zip("xvb", leaves, strict=True)}}


def oracle(x: Tensor, values: Tensor, pattern: tk.Pattern, bias: Tensor, grad: Tensor | None = None) -> dict[str, Tensor]:
    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        weight = torch.zeros(pattern.shape, dtype=values.dtype)
        weight[pattern.mask()] = values
        return F.linear(x, weight, bias)

    return run(function, x.double(), values.double(), bias.double(), grad=grad)


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    if want.numel() == 0:
        return 0.0
    error = (got.double() - want).abs().max().item()
    assert error == error, "NaN"
    return error / (want.abs().max().item() or 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    needs(backend)
    pattern = tk.Pattern(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]))
    x = torch.tensor([[1.0, 2.0, 3.0]] * 5)
    with tk.use_backend(backend):
        out = tk.masked_linear(x, torch.tensor([10.0, 1.0, -1.0]), pattern, torch.tensor([0.0, 7.0, 0.5]))
    assert out.tolist() == [[13.0, 7.0, -1.5]] * 5


@pytest.mark.parametrize("layout", ["contiguous", "batch_last"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32(backend: str, name: str, layout: str) -> None:
    needs(backend)
    x, values, pattern, bias = tensors(name)
    x = as_layout(x, layout)
    with tk.use_backend(backend):
        got = run(lambda x, v, b: tk.masked_linear(x, v, pattern, b), x, values, bias)
    want = oracle(x, values, pattern, bias)
    assert all(relative_error(got[key], want[key]) < 1e-5 for key in want)
    assert layout_of(got["x.grad"]) == layout_of(x)
    if min(got["out"].shape) > 1:  # else a tie may go to contiguous
        assert layout_of(got["out"]) == layout_of(x)


@pytest.mark.parametrize("name", ["plain", "wide"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_at_most_twice_torchs_error(backend: str, name: str) -> None:
    needs(backend)
    x, values, pattern, bias = tensors(name, torch.bfloat16)
    want = oracle(x, values, pattern, bias)
    own = run(lambda x, v, b: F.linear(x, pattern.scatter(v), b), x, values, bias)
    with tk.use_backend(backend):
        got = run(lambda x, v, b: tk.masked_linear(x, v, pattern, b), x, values, bias)
    for key in want:
        assert got[key].dtype == torch.bfloat16
        assert relative_error(got[key], want[key]) <= 2 * relative_error(own[key], want[key]) + 1e-3, key


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_gradient_layouts(backend: str) -> None:
    needs(backend)
    _, values, pattern, bias = tensors("plain")
    big = torch.randn(128, 100)
    for x in (big[::2, ::2], big[:1, :50].expand(64, 50), tk.to_batch_last(big[:64, :50])):
        for grad in (torch.randn(64, 30), torch.randn(30, 64).t(), torch.ones(1).expand(64, 30)):
            with tk.use_backend(backend):
                got = run(lambda x, v, b: tk.masked_linear(x, v, pattern, b), x, values, bias, grad=grad)
            want = oracle(x, values, pattern, bias, grad)
            assert all(relative_error(got[key], want[key]) < 1e-5 for key in want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions(backend: str) -> None:
    needs(backend)
    x, values, pattern, bias = tensors("plain")
    with tk.use_backend(backend):
        flat = tk.masked_linear(x, values, pattern, bias)
        deep = tk.masked_linear(x.view(4, 16, 50), values, pattern, bias)
        one = tk.masked_linear(x[0], values, pattern, bias)
    torch.testing.assert_close(deep.reshape(64, 30), flat, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one, flat[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "dense"])
def test_gradients_of_any_order(backend: str) -> None:
    x, values, pattern, bias = (t.double() if isinstance(t, Tensor) else t for t in tensors("one_input"))
    leaves = [t.requires_grad_() for t in (x, values, bias)]
    with tk.use_backend(backend):

        def function(x: Tensor, v: Tensor, b: Tensor) -> Tensor:
            return tk.masked_linear(x, v, pattern, b)

        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("name", ["odd_batch", "empty"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own reading
def test_opcheck(backend: str, name: str) -> None:
    needs(backend)
    for layout in ("contiguous", "batch_last"):
        x, values, pattern, bias = tensors(name)
        x = as_layout(x, layout).requires_grad_()
        results = torch.library.opcheck(
            op("masked_linear", backend),
            (x, values.requires_grad_(), bias.requires_grad_(), pattern.index, list(pattern.shape), ""),
        )
        assert list(results.values()) == ["SUCCESS"] * 4


def test_opcheck_of_the_gradient_ops() -> None:
    needs("cpu")
    x, values, pattern, _ = tensors("odd_batch")
    grad, shape = torch.randn(x.shape[0], pattern.shape[0]), list(pattern.shape)
    torch.library.opcheck(
        op("masked_linear_input_grad", "cpu"), (grad, values, pattern.index, list(x.shape), "batch_last", shape, "")
    )
    torch.library.opcheck(op("masked_linear_values_grad", "cpu"), (grad, x, pattern.index, pattern.nnz, shape, ""))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_with_a_changing_batch(backend: str) -> None:
    needs(backend)
    _, values, pattern, bias = tensors("plain")

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def function(x: Tensor, values: Tensor) -> Tensor:
        return tk.masked_linear(x, values, pattern, bias).relu().sum()

    for n in (8, 33):
        x, v = torch.randn(n, 50, requires_grad=True), values.clone().requires_grad_()
        with tk.use_backend(backend):
            function(x, v).backward()
            got = x.grad, v.grad
            x.grad = v.grad = None
            tk.masked_linear(x, v, pattern, bias).relu().sum().backward()
        torch.testing.assert_close(got, (x.grad, v.grad), rtol=1e-4, atol=1e-4)


def test_autocast() -> None:
    x, values, pattern, bias = tensors("plain")
    values.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tk.masked_linear(x, values, pattern, bias)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert values.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 5)}, ValueError, r"expected x of shape \(..., 50\), got \(2, 5\)"),
        ({"x": torch.zeros(2, 50, dtype=torch.int32)}, TypeError, "expected x of a floating dtype"),
        ({"x": torch.zeros(2, 50, dtype=torch.float64)}, TypeError, "expected values of x's dtype torch.float64"),
        ({"x": 3}, TypeError, "expected x to be a tensor, got int"),
        ({"values": torch.zeros(3)}, ValueError, "expected values of shape"),
        ({"pattern": torch.ones(30, 50)}, TypeError, "expected pattern to be a tost_kernels.Pattern, got Tensor"),
        ({"pattern": tk.Pattern(torch.ones(3, 5, 1, 1))}, ValueError, r"expected pattern of shape \(O, I\)"),
        ({"bias": torch.zeros(3)}, ValueError, r"expected bias of shape \(30,\), got \(3,\)"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, values, pattern, bias = tensors("plain")
    with pytest.raises(error, match=message):
        tk.masked_linear(**({"x": x, "values": values, "pattern": pattern, "bias": bias} | change))
