"""pswish: exact tables, the reference's gradients, and the compiled kernel against a float64 reference."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import tost_kernels as tk
from tests.tost_kernels.ops.tails import SHAPES_IN_LAYOUTS
from tost_kernels import backend
from tost_kernels.layout import as_layout, layout_of
from tost_kernels.ops.pswish import reference as pswish_reference
from tost_kernels.register import op

needs_cpu = pytest.mark.skipif(backend.why_not("pswish", "cpu") is not None, reason="the compiled library is absent")
NATIVE = [pytest.param("cpu", marks=needs_cpu), "reference"]


def relative(got: Tensor, want: Tensor) -> float:
    if want.numel() == 0:
        assert got.shape == want.shape
        return 0.0
    return float((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30))


def gradients(x: Tensor, beta: Tensor, dy: Tensor, name: str) -> list[Tensor]:
    x, beta = x.detach().requires_grad_(), beta.detach().requires_grad_()
    with tk.use_backend(name):
        y = tk.pswish(x, beta)
    return [y.detach(), *torch.autograd.grad(y, (x, beta), dy.to(y.dtype))]


@pytest.mark.parametrize("name", NATIVE)
def test_values_by_hand(name: str) -> None:
    x = torch.tensor([0.0, math.log(3.0), -math.log(3.0)])
    with tk.use_backend(name):
        # sigmoid(ln 3) = 3/4; beta = 0 halves; beta = 2: sigmoid(2 ln 3) = 9/10
        assert tk.pswish(x, 1.0).tolist() == pytest.approx([0.0, 0.75 * math.log(3), -0.25 * math.log(3)])
        assert tk.pswish(x, 0.0).tolist() == pytest.approx((x / 2).tolist())
        assert tk.pswish(x, 2).tolist() == pytest.approx([0.0, 0.9 * math.log(3), -0.1 * math.log(3)])


@pytest.mark.parametrize("name", NATIVE)
def test_gradients_by_hand(name: str) -> None:
    x, s = math.log(3.0), 0.75
    _, dx, dbeta = gradients(torch.tensor([x, x]), torch.tensor(1.0), torch.tensor([1.0, 2.0]), name)
    slope = s + x * s * (1 - s)
    assert dx.tolist() == pytest.approx([slope, 2 * slope])
    assert dbeta.item() == pytest.approx(3 * x * x * s * (1 - s))


@pytest.mark.parametrize("beta", [torch.tensor(1.7), torch.tensor([0.5, -1.0, 3.0])], ids=["shared", "per channel"])
def test_reference_gradients_of_first_and_second_order(beta: Tensor) -> None:
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    beta = beta.double().requires_grad_()
    assert torch.autograd.gradcheck(tk.pswish, (x, beta))
    assert torch.autograd.gradgradcheck(tk.pswish, (x, beta))


@needs_cpu
@pytest.mark.parametrize(("shape", "layout"), SHAPES_IN_LAYOUTS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_kernel_is_accurate(shape: tuple[int, ...], per_channel: bool, layout: str) -> None:
    x = as_layout(torch.randn(shape), layout)
    beta = torch.linspace(0.3, 4.0, shape[1]) if per_channel else torch.tensor(1.3)
    dy = torch.rand(shape)  # of one sign: the terms of dbeta do not cancel, so a relative error means something
    got = gradients(x, beta, dy, "cpu")
    want = gradients(x.double(), beta.double(), dy, "reference")
    assert layout_of(got[0]) == layout_of(got[1]) == layout_of(x)
    for mine, exact in zip(got, want, strict=True):
        assert relative(mine, exact) < 1e-5


@needs_cpu
@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
def test_bfloat16_is_as_good_as_torch(per_channel: bool) -> None:
    x = torch.randn(8, 3, 6, 6).bfloat16()
    beta = torch.tensor([0.5, 1.0, 2.0]) if per_channel else torch.tensor(1.5)
    dy = torch.randn_like(x)
    exact = gradients(x.double(), beta.double(), dy, "reference")
    leaves = x.clone().requires_grad_(), beta.bfloat16().requires_grad_()
    shaped = leaves[1].reshape(-1, 1, 1) if per_channel else leaves[1]
    composite = leaves[0] * torch.sigmoid(shaped * leaves[0])
    torch_own = [composite.detach(), *torch.autograd.grad(composite, leaves, dy)]
    got = gradients(x, beta, dy, "cpu")
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    for mine, other, want in zip(got, torch_own, exact, strict=True):
        assert (mine.double() - want).abs().max() <= 2 * (other.double() - want).abs().max() + 1e-3 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_run_through_the_reference(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4).to(dtype)
    y = tk.pswish(x, 2.0)
    assert y.dtype == dtype
    torch.testing.assert_close(y, (x.double() * torch.sigmoid(2 * x.double())).to(dtype))


@needs_cpu
def test_extremes() -> None:
    x = torch.tensor([3e38, -3e38, 1e30, -1e30, -200.0, 0.0, float("nan"), float("inf")])
    y = tk.pswish(x, 10.0)
    want = [x[0].item(), 0.0, x[2].item(), 0.0, 0.0, 0.0]
    assert y[:6].tolist() == pytest.approx(want, abs=1e-30)
    assert y[6].isnan()
    assert y[7] == float("inf")


@needs_cpu
@pytest.mark.parametrize("per_channel", [False, True], ids=["shared", "per channel"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
def test_opcheck(layout: str, per_channel: bool) -> None:
    x = as_layout(torch.randn(3, 4, 2, 5), layout).requires_grad_()
    beta = (torch.rand(4) if per_channel else torch.tensor(0.9)).requires_grad_()
    torch.library.opcheck(op("pswish", "cpu"), (x, beta, ""))
    if layout == "contiguous":
        torch.library.opcheck(op("pswish", "reference"), (x, beta, ""))
    torch.library.opcheck(op("pswish_backward", "cpu"), (torch.randn(x.shape), x.detach(), beta.detach(), ""))


@needs_cpu
@pytest.mark.parametrize("strides", ["expanded", "sliced", "other layout"])
def test_any_strides_of_input_and_gradient(strides: str) -> None:
    x = as_layout(torch.randn(4, 3, 5, 2), "batch_last")
    dy = {
        "expanded": torch.ones(()).expand(4, 3, 5, 2),
        "sliced": torch.rand(8, 3, 5, 4)[::2, :, :, ::2],
        "other layout": as_layout(torch.rand(4, 3, 5, 2), "channels_last"),
    }[strides]
    for source in (x, x.flip(3)[:, :, ::2].expand(4, 3, 3, 2)):
        cut = dy[:, :, : source.shape[2]]
        got = gradients(source, torch.tensor(1.1), cut, "cpu")
        want = gradients(source.double(), torch.tensor(1.1).double(), cut, "reference")
        assert all(relative(a, b) < 1e-5 for a, b in zip(got, want, strict=True))
    assert layout_of(gradients(x, torch.tensor(1.1), dy, "cpu")[1]) == "batch_last"


@pytest.mark.parametrize("name", NATIVE)
def test_compile_sees_beta_move(name: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    x, beta = torch.randn(2, 3, 4, 4, requires_grad=True), torch.tensor(1.0)
    with tk.use_backend(name):
        compiled = torch.compile(tk.pswish, fullgraph=True, backend=counter)
        for value in (1.0, 4.0):
            beta.fill_(value)
            got = torch.autograd.grad(compiled(x, beta).sum(), x)[0]
            torch.testing.assert_close(got, torch.autograd.grad(tk.pswish(x, beta).sum(), x)[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", NATIVE)
def test_torch_func_grad(name: str) -> None:
    x, beta = torch.randn(3, 4), torch.tensor(0.7)
    with tk.use_backend(name):
        got = torch.func.grad(lambda b: tk.pswish(x, b).square().sum())(beta)
    s = torch.sigmoid(beta * x)
    torch.testing.assert_close(got, (2 * x * s * x * x * s * (1 - s)).sum())


def test_autocast_keeps_the_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tk.pswish(torch.randn(3), 1.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], 1.0), TypeError, "x to be a Tensor, got list"),
        ((torch.ones(2, dtype=torch.int64), 1.0), TypeError, "x of float16.*got torch.int64"),
        ((torch.ones(2), "1"), TypeError, "beta to be a number or a Tensor, got str"),
        ((torch.ones(2, 3), torch.ones(2)), ValueError, r"beta of shape \(\) or \(C,\).*\(2, 3\), got \(2,\)"),
        ((torch.ones(2, 3), torch.ones(3, dtype=torch.int32)), TypeError, "beta of a floating dtype, got torch.int32"),
        ((torch.ones(2), torch.ones((), device="meta")), ValueError, "beta on cpu, got meta"),
    ],
)
def test_bad_arguments(arguments: tuple[object, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tk.pswish(*arguments)


@needs_cpu
def test_the_raw_op_names_what_is_wrong() -> None:
    with pytest.raises(RuntimeError, match="pswish_cpu: input: expected float32 or bfloat16, got float64"):
        op("pswish", "cpu")(torch.ones(2, 3).double(), torch.tensor(1.0), "")
    with pytest.raises(RuntimeError, match=r"pswish_cpu: beta: expected shape \(3\), got \(2\)"):
        op("pswish", "cpu")(torch.ones(2, 3), torch.ones(2), "")


CHILD = """
import torch, tost_kernels as tk
from tost_kernels.ops.pswish import reference as pswish_reference
torch.manual_seed(0)
x, beta = torch.randn(3, 5, 7, 3, requires_grad=True), torch.tensor(1.3, requires_grad=True)
y = tk.pswish(x, beta); got = torch.autograd.grad(y.square().sum(), (x, beta))
r = pswish_reference(x.double(), beta.double()); want = torch.autograd.grad(r.square().sum(), (x, beta))
for a, b in ((y, r), *zip(got, want)):
    assert ((a.double() - b).abs().max() / b.abs().max()).item() < 1e-5
"""


@needs_cpu
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_lower_instruction_sets(isa: str, run_on: Callable[[str, str], None]) -> None:
    run_on(isa, CHILD)


def test_reference_is_exported_for_every_layout() -> None:
    for layout in ("contiguous", "channels_last", "batch_last"):
        x = as_layout(torch.randn(4, 3, 2, 2), layout)
        assert layout_of(pswish_reference(x, torch.tensor(1.0))) == layout
