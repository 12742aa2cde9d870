"""masked_conv2d: a table worked out by hand, a dozen odd shapes on every backend, the op contract, and clear errors."""

from dataclasses import dataclass
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


def needs(backend: str) -> None:
    reason = why_not("masked_conv2d", backend)
    if reason is not None:
        pytest.skip(reason)


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    density: float = 0.3
    bias: bool = True


CASES = {
    "plain": Case((17, 8, 9, 9), (12, 8, 3, 3), padding=1),
    "one_sample": Case((1, 3, 5, 7), (4, 3, 3, 3), padding=1),
    "one_pixel": Case((33, 20, 1, 1), (7, 20, 1, 1), density=0.5),
    "pointwise_strided": Case((16, 9, 7, 7), (5, 9, 1, 1), stride=2),
    "strided_uneven": Case((18, 6, 10, 7), (6, 6, 3, 3), stride=(2, 3), padding=(1, 0)),
    "stride_beyond_kernel": Case((5, 4, 11, 11), (3, 4, 2, 2), stride=4),
    "dilated": Case((16, 5, 12, 11), (4, 5, 3, 3), padding=(2, 3), dilation=(2, 3)),
    "rectangular": Case((19, 7, 6, 13), (9, 7, 5, 1), padding=(2, 0)),
    "rectangular_wide": Case((19, 7, 6, 13), (9, 7, 1, 4), padding=(0, 3), stride=(1, 2)),
    "groups": Case((20, 12, 6, 6), (9, 4, 3, 3), padding=1, groups=3),
    "depthwise": Case((31, 10, 8, 8), (10, 1, 3, 3), padding=1, groups=10, density=0.6),
    "depthwise_multiplier_strided": Case((8, 6, 9, 9), (12, 1, 3, 3), padding=1, stride=2, groups=6, density=0.6),
    "many_channels": Case((16, 70, 4, 4), (50, 70, 3, 3), padding=1, density=0.05),
    "wide_padding": Case((4, 3, 3, 3), (4, 3, 3, 3), padding=4),
    "empty": Case((9, 4, 5, 5), (6, 4, 3, 3), padding=1, density=0.0),
    "full": Case((9, 4, 5, 5), (6, 4, 3, 3), padding=1, density=1.0, bias=False),
    "no_samples": Case((0, 4, 5, 5), (6, 4, 3, 3), padding=1),
}


def tensors(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, tk.Pattern, Tensor | None]:
    mask = torch.rand(case.weight) < case.density
    if 0 < case.density < 1:
        mask[-1] = False  # an output channel without weights
        mask[0, 0, 0, 0] = True
    pattern = tk.Pattern(mask)
    x = torch.randn(case.x, dtype=torch.float64).to(dtype)
    values = torch.randn(pattern.nnz, dtype=torch.float64).to(dtype)
    bias = torch.randn(case.weight[0], dtype=torch.float64).to(dtype) if case.bias else None
    return x, values, pattern, bias


def run(function: Any, x: Tensor, values: Tensor, bias: Tensor | None, grad: Tensor | None = None) -> dict[str, Tensor]:
    """Output and gradients of `function(x, values, bias)`."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, values)]
    b = None if bias is None else bias.detach().clone().requires_grad_()
    out = function(*leaves, b)
    if grad is None:
        grad = torch.sin(torch.arange(out.numel())).view(out.shape) + 0.5  # sums that do not cancel to nothing
    out.backward(grad.to(out.dtype))
    result = {"out": out.detach(), "x.grad": leaves[0].grad, "values.grad": leaves[1].grad}
    return result | ({} if b is None else {"bias.grad": b.grad})


def arguments(case: Case) -> tuple[Any, ...]:
    return case.stride, case.padding, case.dilation, case.groups


def relative_error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    if want.numel() == 0:
        return 0.0
    scale = want.abs().max().item()
    error = (got.double() - want).abs().max().item()
    assert error == error, "NaN"
    return error / scale if scale else error


def oracle(case: Case, x: Tensor, values: Tensor, pattern: tk.Pattern, bias: Tensor | None) -> dict[str, Tensor]:
    """torch's convolution in float64, with a weight built here by plain indexing."""

    def function(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        weight = torch.zeros(case.weight, dtype=values.dtype)
        weight[pattern.mask()] = values
        return F.conv2d(x, weight, bias, *arguments(case))

    return run(function, x.double(), values.double(), None if bias is None else bias.double())


def test_by_hand() -> None:
    """A 2 x 2 kernel that keeps its main diagonal, on a 3 x 3 picture."""
    pattern = tk.Pattern(torch.tensor([[[[1, 0], [0, 1]]]]))
    x = torch.arange(9.0).view(1, 1, 3, 3).repeat(4, 1, 1, 1)
    for backend in BACKENDS:
        if why_not("masked_conv2d", backend) is None:
            with tk.use_backend(backend):
                out = tk.masked_conv2d(x, torch.tensor([10.0, 1.0]), pattern, torch.tensor([0.5]))
            assert out[3].tolist() == [[[4.5, 15.5], [37.5, 48.5]]]


@pytest.mark.parametrize("layout", ["contiguous", "batch_last", "channels_last"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32(backend: str, name: str, layout: str) -> None:
    needs(backend)
    case = CASES[name]
    x, values, pattern, bias = tensors(case, torch.float32)
    x = as_layout(x, layout)
    want = oracle(case, x, values, pattern, bias)
    with tk.use_backend(backend):
        got = run(lambda x, v, b: tk.masked_conv2d(x, v, pattern, b, *arguments(case)), x, values, bias)
    for key, tensor in got.items():
        assert relative_error(tensor, want[key]) < 1e-5, key
    assert layout_of(got["x.grad"]) == layout_of(x)
    sides = got["out"].shape
    if sides[0] > 1 and sides[1] > 1 and sides[2] * sides[3] > 1:  # else a tie may go to contiguous
        assert layout_of(got["out"]) == layout_of(x)


@pytest.mark.parametrize("name", ["plain", "strided_uneven", "depthwise", "many_channels"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_at_most_twice_torchs_error(backend: str, name: str) -> None:
    needs(backend)
    case = CASES[name]
    x, values, pattern, bias = tensors(case, torch.bfloat16)
    want = oracle(case, x, values, pattern, bias)

    def torch_own(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, pattern.scatter(values), bias, *arguments(case))

    own = run(torch_own, x, values, bias)
    with tk.use_backend(backend):
        got = run(lambda x, v, b: tk.masked_conv2d(x, v, pattern, b, *arguments(case)), x, values, bias)
    for key, tensor in got.items():
        assert tensor.dtype == torch.bfloat16
        assert relative_error(tensor, want[key]) <= 2 * relative_error(own[key], want[key]) + 1e-3, key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_run_by_default(dtype: torch.dtype) -> None:
    case = CASES["plain"]
    x, values, pattern, bias = tensors(case, dtype)
    got = run(lambda x, v, b: tk.masked_conv2d(x, v, pattern, b, *arguments(case)), x, values, bias)
    want = oracle(case, x, values, pattern, bias)
    assert all(t.dtype == dtype for t in got.values())
    assert all(relative_error(got[key], want[key]) < (1e-12 if dtype == torch.float64 else 2e-2) for key in want)


@pytest.mark.parametrize("kind", ["expanded", "sliced", "transposed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend: str, kind: str) -> None:
    needs(backend)
    case = Case((6, 4, 8, 8), (5, 4, 3, 3), padding=1)
    _, values, pattern, bias = tensors(case, torch.float32)
    big = torch.randn(12, 4, 8, 8)
    x = {"expanded": big[:1].expand(6, 4, 8, 8), "sliced": big[::2], "transposed": big[:6].transpose(2, 3)}[kind]
    with tk.use_backend(backend):
        got = tk.masked_conv2d(x, values, pattern, bias, padding=1)
    torch.testing.assert_close(got, F.conv2d(x, pattern.scatter(values), bias, padding=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "batch_last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_layouts_follow_the_input(backend: str, layout: str) -> None:
    """Whatever the layout and strides of the incoming gradient, expanded ones included."""
    needs(backend)
    case = CASES["plain"]
    x, values, pattern, bias = tensors(case, torch.float32)
    x = as_layout(x, layout)
    for grad in (torch.randn(17, 12, 9, 9), tk.to_batch_last(torch.randn(17, 12, 9, 9)), torch.ones(1).expand(17, 12, 9, 9)):
        with tk.use_backend(backend):
            got = run(lambda x, v, b: tk.masked_conv2d(x, v, pattern, b, padding=1), x, values, bias, grad)
        want = run(
            lambda x, v, b: F.conv2d(x, pattern.scatter(v), b, padding=1), x.double(), values.double(), bias.double(), grad
        )
        assert layout_of(got["x.grad"]) == layout
        assert all(relative_error(got[key], want[key]) < 1e-5 for key in want)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (4, 1), (1, 5)])
@pytest.mark.parametrize("layout", ["contiguous", "batch_last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_padding(backend: str, layout: str, kernel: tuple[int, int]) -> None:
    needs(backend)
    pattern = tk.Pattern(torch.rand(5, 3, *kernel) < 0.5)
    x, values = as_layout(torch.randn(4, 3, 7, 8), layout), torch.randn(pattern.nnz)
    with tk.use_backend(backend):
        got = tk.masked_conv2d(x, values, pattern, padding="same", dilation=2)
        valid = tk.masked_conv2d(x, values, pattern, padding="valid")
    weight = pattern.scatter(values).double()
    # torch warns about even kernels, so its result is made by hand
    want = F.conv2d(_pad_same(x.double(), kernel, 2), weight, dilation=2)
    assert relative_error(got, want) < 1e-5
    assert relative_error(valid, F.conv2d(x.double(), weight)) < 1e-5
    assert layout_of(got) == layout


def _pad_same(x: Tensor, kernel: tuple[int, int], dilation: int) -> Tensor:
    (top, bottom), (left, right) = (((t := dilation * (k - 1)) // 2, t - t // 2) for k in kernel)
    return F.pad(x, (left, right, top, bottom))


@pytest.mark.parametrize("backend", ["reference", "dense"])
def test_gradients_of_any_order(backend: str) -> None:
    case = Case((2, 4, 4, 5), (4, 2, 3, 2), stride=(1, 2), padding=1, groups=2, density=0.5)
    x, values, pattern, bias = tensors(case)
    leaves = [t.requires_grad_() for t in (x, values, bias)]
    with tk.use_backend(backend):

        def function(x: Tensor, v: Tensor, b: Tensor) -> Tensor:
            return tk.masked_conv2d(x, v, pattern, b, *arguments(case))

        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


def test_the_compiled_kernel_refuses_a_second_derivative() -> None:
    needs("cpu")
    x, values, pattern, _ = tensors(CASES["plain"], torch.float32)
    x.requires_grad_()
    values.requires_grad_()
    with tk.use_backend("cpu"):
        out = tk.masked_conv2d(x, values, pattern)
        (grad,) = torch.autograd.grad(out.square().sum(), values, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
        # d(out)/dx depends on values, though not through the incoming gradient: a quiet 0 would be wrong
        (grad,) = torch.autograd.grad(tk.masked_conv2d(x, values, pattern).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.square().sum().backward()

        def loss(v: Tensor) -> Tensor:
            return tk.masked_conv2d(x, v, pattern).square().sum()

        with pytest.raises(RuntimeError, match="compiled ops differentiate once"):
            torch.func.grad(lambda v: torch.func.grad(loss)(v).sum())(values)
        values.grad = None
        tk.masked_conv2d(x, values, pattern).sum().backward(create_graph=False)
    assert values.grad is not None
    assert not values.grad.requires_grad


def geometry(case: Case) -> tuple[Any, ...]:
    def pair(v: Any) -> list[int]:
        return [v, v] if isinstance(v, int) else list(v)

    return list(case.weight), pair(case.stride), pair(case.padding), pair(case.dilation), case.groups, ""


@pytest.mark.parametrize("name", ["plain", "depthwise_multiplier_strided", "rectangular_wide", "empty"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own reading
def test_opcheck(backend: str, name: str) -> None:
    needs(backend)
    case = CASES[name]
    for layout in ("contiguous", "batch_last"):
        x, values, pattern, bias = tensors(case, torch.float32)
        x = as_layout(x, layout).requires_grad_()
        results = torch.library.opcheck(
            op("masked_conv2d", backend),
            (x, values.requires_grad_(), bias.requires_grad_(), pattern.index, *geometry(case)),
        )
        assert list(results.values()) == ["SUCCESS"] * 4


def test_opcheck_of_the_gradient_ops() -> None:
    needs("cpu")
    case = CASES["strided_uneven"]
    x, values, pattern, _ = tensors(case, torch.float32)
    grad = torch.randn(tk.masked_conv2d(x, values, pattern, None, *arguments(case)).shape)
    shape = list(x.shape)
    torch.library.opcheck(
        op("masked_conv2d_input_grad", "cpu"), (grad, values, pattern.index, shape, "batch_last", *geometry(case))
    )
    torch.library.opcheck(op("masked_conv2d_values_grad", "cpu"), (grad, x, pattern.index, pattern.nnz, *geometry(case)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_with_a_changing_batch(backend: str) -> None:
    needs(backend)
    _, values, pattern, bias = tensors(CASES["plain"], torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def function(x: Tensor, values: Tensor) -> Tensor:
        return tk.masked_conv2d(x, values, pattern, bias, padding=1).relu().sum()

    for n in (8, 16, 33):
        x = tk.to_batch_last(torch.randn(n, 8, 9, 9)).requires_grad_()
        v = values.clone().requires_grad_()
        with tk.use_backend(backend):
            function(x, v).backward()
            got = x.grad, v.grad
            x.grad = v.grad = None
            tk.masked_conv2d(x, v, pattern, bias, padding=1).relu().sum().backward()
        torch.testing.assert_close(got[0], x.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[1], v.grad, rtol=1e-4, atol=1e-4)
        assert got[0].stride() == x.stride()


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap runs the op in a loop, and says so
@pytest.mark.parametrize("backend", BACKENDS)
def test_functional_transforms(backend: str) -> None:
    needs(backend)
    x, values, pattern, _ = tensors(Case((4, 3, 5, 5), (4, 3, 3, 3)), torch.float32)
    with tk.use_backend(backend):

        def loss(v: Tensor, sample: Tensor) -> Tensor:
            return tk.masked_conv2d(sample.unsqueeze(0), v, pattern, padding=1).square().sum()

        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
        one_by_one = torch.stack([torch.func.grad(loss)(values, sample) for sample in x])
    torch.testing.assert_close(per_sample, one_by_one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    needs(backend)
    x, values, pattern, bias = tensors(CASES["plain"], torch.float32)
    values.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16), tk.use_backend(backend):
        out = tk.masked_conv2d(x, values, pattern, bias, padding=1)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert values.grad.dtype == torch.float32


def test_autocast_leaves_float64_alone() -> None:
    x, values, pattern, bias = tensors(CASES["plain"], torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tk.masked_conv2d(x, values, pattern, bias).dtype == torch.float64


def test_unbatched() -> None:
    x, values, pattern, bias = tensors(CASES["plain"], torch.float32)
    torch.testing.assert_close(
        tk.masked_conv2d(x[3], values, pattern, bias), tk.masked_conv2d(x, values, pattern, bias)[3], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 5, 9, 9)}, ValueError, "expected x with 8 channels"),
        ({"x": torch.zeros(8, 9)}, ValueError, r"expected x of shape \(N, C, H, W\)"),
        ({"x": torch.zeros(2, 8, 1, 1)}, ValueError, "large enough for a kernel"),
        ({"x": torch.zeros(2, 8, 9, 9, dtype=torch.int64)}, TypeError, "expected x of a floating dtype, got torch.int64"),
        ({"x": torch.zeros(2, 8, 9, 9, dtype=torch.float64)}, TypeError, "expected values of x's dtype torch.float64"),
        ({"x": "picture"}, TypeError, "expected x to be a tensor, got str"),
        ({"values": torch.zeros(3)}, ValueError, "expected values of shape"),
        ({"pattern": torch.ones(12, 8, 3, 3)}, TypeError, "expected pattern to be a tost_kernels.Pattern, got Tensor"),
        ({"pattern": tk.Pattern(torch.ones(12, 8))}, ValueError, r"expected pattern of shape \(O, C / groups, kh, kw\)"),
        ({"bias": [1.0] * 12}, TypeError, "expected bias to be a tensor, got list"),
        ({"stride": 1.5}, ValueError, "expected stride to be an int or two, each at least 1, got 1.5"),
        ({"bias": torch.zeros(3)}, ValueError, r"expected bias of shape \(12,\), got \(3,\)"),
        ({"stride": 0}, ValueError, "expected stride to be an int or two, each at least 1, got 0"),
        ({"stride": 2, "padding": "same"}, ValueError, "padding='same' needs stride 1"),
        ({"padding": "full"}, ValueError, "expected padding to be numbers, 'same' or 'valid', got 'full'"),
        ({"padding": -1}, ValueError, "expected padding to be an int or two, each at least 0, got -1"),
        ({"groups": 5}, ValueError, "expected groups to divide 12 output channels, got 5"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, values, pattern, bias = tensors(CASES["plain"], torch.float32)
    good = {"x": x, "values": values, "pattern": pattern, "bias": bias}
    with pytest.raises(error, match=message):
        tk.masked_conv2d(**(good | change))


def test_a_backend_that_cannot_run_says_why() -> None:
    x, values, pattern, _ = tensors(CASES["plain"], torch.float32)
    with tk.use_backend("cuda"), pytest.raises(RuntimeError, match="masked_conv2d: the backend 'cuda' cannot be used"):
        tk.masked_conv2d(x, values, pattern)
    with pytest.raises(ValueError, match="expected name to be one of"), tk.use_backend("gpu"):
        pass
    needs("cpu")
    with tk.use_backend("cpu"), pytest.raises(RuntimeError, match=r"in float32 and bfloat16, got torch\.float64"):
        tk.masked_conv2d(x.double(), values.double(), pattern)
